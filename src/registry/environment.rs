//! etcdctl's environment variables, to the options of a registry.

use std::env::VarError;
use std::time::Duration;

use super::Registry;
use super::builder::RegistryBuilder;
use crate::error::ConfigError;
#[cfg(feature = "_tls")]
use crate::tls::ClientTls;

impl Registry {
    /// The options of a registry as the environment of `etcdctl` has them, so that a program finds the cluster that
    /// `etcdctl` does. Options that are given afterwards replace them.
    ///
    /// | variable | |
    /// | --- | --- |
    /// | `ETCDCTL_ENDPOINTS` | the members, with commas between; defaults to `127.0.0.1:2379` |
    /// | `ETCDCTL_USER` | the user, or `user:password` |
    /// | `ETCDCTL_PASSWORD` | the password, where it does not stand behind the user |
    /// | `ETCDCTL_CACERT` | a file with the authorities of the members' certificates |
    /// | `ETCDCTL_CERT`, `ETCDCTL_KEY` | files of our own certificate and its key |
    /// | `ETCDCTL_DIAL_TIMEOUT` | such as `2s`, `500ms` or `1m30s` |
    ///
    /// A variable that is empty is one that is not set. With one of the three for TLS, endpoints without a scheme are
    /// `https`. Without `ETCDCTL_CACERT` no authority is trusted, unlike in `etcdctl`: an `https` endpoint then needs
    /// [`tls`](RegistryBuilder::tls). What would make the connection less secure, or cannot be followed, is refused:
    /// `ETCDCTL_INSECURE_SKIP_TLS_VERIFY`, `ETCDCTL_DISCOVERY_SRV`, `ETCDCTL_AUTH_JWT_TOKEN`. Others say nothing about
    /// the cluster, and are ignored. `ETCDCTL_INSECURE_TRANSPORT=false` needs `ETCDCTL_CACERT` beside it.
    ///
    /// ```no_run
    /// use tonic_etcd::Registry;
    ///
    /// # fn example() -> Result<(), tonic_etcd::ConfigError> {
    /// let registry = Registry::from_env()?.prefix("services").build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError::Environment`] names the variable whose value cannot be used; its value is shown unless it may hold a
    /// secret. [`ConfigError::Tls`] names the file that cannot be read or used. Endpoints are checked by
    /// [`build`](RegistryBuilder::build).
    ///
    /// [`from_env_with`](Self::from_env_with) takes the variables from elsewhere.
    pub fn from_env() -> Result<RegistryBuilder, ConfigError> {
        from(|name| match std::env::var(name) {
            Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => Err(refused(name, "text in UTF-8")),
        })
    }

    /// Like [`from_env`](Self::from_env), with the values of variables from `value`: for a program with flags of its own
    /// that count before the environment. What `value` does not know, or gives empty, is not set.
    ///
    /// ```no_run
    /// use tonic_etcd::Registry;
    ///
    /// # fn example() -> Result<(), tonic_etcd::ConfigError> {
    /// let endpoints = std::env::args().nth(1);
    /// let registry = Registry::from_env_with(|name| match name {
    ///     "ETCDCTL_ENDPOINTS" if endpoints.is_some() => endpoints.clone(),
    ///     name => std::env::var(name).ok(),
    /// })?;
    /// let registry = registry.build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`from_env`](Self::from_env).
    pub fn from_env_with(value: impl Fn(&str) -> Option<String>) -> Result<RegistryBuilder, ConfigError> {
        from(|name| Ok(value(name).filter(|value| !value.is_empty())))
    }
}

fn from(set: impl Fn(&'static str) -> Result<Option<String>, ConfigError>) -> Result<RegistryBuilder, ConfigError> {
    for (name, expected) in UNUSABLE {
        if let Some(value) = set(name)? {
            let value = if name == TOKEN { HIDDEN.to_owned() } else { value };
            return Err(ConfigError::Environment { variable: name, value, expected });
        }
    }
    for (name, usable, expected) in SWITCHES {
        if let Some(value) = set(name)?
            && go_bool(&value) != Some(usable)
            && (name != INSECURE_TRANSPORT || set(CACERT)?.is_none())
        {
            return Err(ConfigError::Environment { variable: name, value, expected });
        }
    }
    let mut builder = Registry::builder([set(ENDPOINTS)?.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned())]);
    if let Some(user) = set(USER)? {
        let (user, password) = match (user.split_once(':'), set(PASSWORD)?) {
            (Some((user, password)), None) => (user.to_owned(), password.to_owned()),
            (None, Some(password)) => (user, password),
            (Some(_), Some(_)) => {
                return Err(refused(USER, "no password behind the user where ETCDCTL_PASSWORD is set"));
            }
            (None, None) => return Err(refused(USER, "user:password, or ETCDCTL_PASSWORD beside it")),
        };
        builder = builder.auth(user, password);
    }
    if let Some(value) = set(DIAL_TIMEOUT)? {
        let timeout = go_duration(&value).filter(|timeout| !timeout.is_zero());
        let expected = "a time such as 2s, 500ms or 1m30s";
        let refused = ConfigError::Environment { variable: DIAL_TIMEOUT, value, expected };
        builder = builder.dial_timeout(timeout.ok_or(refused)?);
    }
    let file = |name| {
        let file = set(name)?;
        // That would be shown as the path that cannot be read.
        let is_pem = file.as_ref().is_some_and(|file| file.contains("-----BEGIN"));
        if is_pem { Err(refused(name, "the path of a file, not what is in it")) } else { Ok(file) }
    };
    with_tls(builder, file(CACERT)?, file(CERT)?, file(KEY)?)
}

#[cfg(feature = "_tls")]
fn with_tls(
    builder: RegistryBuilder,
    authority: Option<String>,
    cert: Option<String>,
    key: Option<String>,
) -> Result<RegistryBuilder, ConfigError> {
    let mut tls = ClientTls::new();
    let is_wanted = authority.is_some() || cert.is_some();
    if let Some(file) = authority {
        tls = tls.ca_file(file)?;
    }
    match (cert, key) {
        (Some(cert), Some(key)) => tls = tls.identity_files(cert, key)?,
        (None, None) => {}
        (Some(value), None) => {
            let expected = "a file whose key ETCDCTL_KEY names";
            return Err(ConfigError::Environment { variable: CERT, value, expected });
        }
        (None, Some(value)) => {
            let expected = "a file whose certificate ETCDCTL_CERT names";
            return Err(ConfigError::Environment { variable: KEY, value, expected });
        }
    }
    Ok(if is_wanted { builder.tls(tls) } else { builder })
}

#[cfg(not(feature = "_tls"))]
fn with_tls(
    builder: RegistryBuilder,
    authority: Option<String>,
    cert: Option<String>,
    key: Option<String>,
) -> Result<RegistryBuilder, ConfigError> {
    for (variable, value) in [(CACERT, authority), (CERT, cert), (KEY, key)] {
        if let Some(value) = value {
            let expected = "nothing, without the feature tls-ring or tls-aws-lc";
            return Err(ConfigError::Environment { variable, value, expected });
        }
    }
    Ok(builder)
}

/// Refuses a value that may hold a secret.
fn refused(variable: &'static str, expected: &'static str) -> ConfigError {
    ConfigError::Environment { variable, value: HIDDEN.to_owned(), expected }
}

/// A switch as Go reads it.
fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A time as Go writes it: numbers with a unit each, largest first as a rule.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        let seconds = match unit {
            "h" => 3_600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            // Both signs that look like it.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let value: f64 = value.parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(value * seconds).ok()?)?;
        rest = after;
    }
    Some(sum).filter(|_| !text.is_empty())
}

const ENDPOINTS: &str = "ETCDCTL_ENDPOINTS";
const USER: &str = "ETCDCTL_USER";
const PASSWORD: &str = "ETCDCTL_PASSWORD";
const CACERT: &str = "ETCDCTL_CACERT";
const CERT: &str = "ETCDCTL_CERT";
const KEY: &str = "ETCDCTL_KEY";
const DIAL_TIMEOUT: &str = "ETCDCTL_DIAL_TIMEOUT";
const TOKEN: &str = "ETCDCTL_AUTH_JWT_TOKEN";

const INSECURE_TRANSPORT: &str = "ETCDCTL_INSECURE_TRANSPORT";

/// Switches, the value with which each can be followed, and what to set otherwise.
const SWITCHES: [(&str, bool, &str); 2] = [
    (
        "ETCDCTL_INSECURE_SKIP_TLS_VERIFY",
        false,
        "false, and ETCDCTL_CACERT with the authority of the members' certificates",
    ),
    // With it `etcdctl` speaks TLS and trusts the system's authorities, which are not trusted here unless asked for.
    (INSECURE_TRANSPORT, true, "ETCDCTL_CACERT beside it, with the authority of the members' certificates"),
];

/// What cannot be followed, and what to set instead.
const UNUSABLE: [(&str, &str); 2] = [
    ("ETCDCTL_DISCOVERY_SRV", "ETCDCTL_ENDPOINTS with the members"),
    (TOKEN, "ETCDCTL_USER and ETCDCTL_PASSWORD, since a token ends"),
];

/// etcdctl's own default.
const DEFAULT_ENDPOINT: &str = "127.0.0.1:2379";

/// Stands for a value that may hold a secret.
const HIDDEN: &str = "(hidden)";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<RegistryBuilder, ConfigError> {
        Registry::from_env_with(|name| {
            let known = variables.iter().find(|(known, _)| *known == name);
            known.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_variables_it_is_the_etcd_of_this_host() {
        for variables in [
            &[][..],
            &[(ENDPOINTS, ""), (USER, ""), ("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "False"), (INSECURE_TRANSPORT, "1")],
        ] {
            let builder = read(variables).expect("nothing is set");
            let shown = format!("{builder:?}");
            assert!(shown.contains(DEFAULT_ENDPOINT) && shown.contains("credentials: None"), "{shown}");
            drop(builder.build().expect("a good registry"));
        }
    }

    #[test]
    fn endpoints_user_and_times_are_those_of_etcdctl() {
        for user in [&[(USER, "root"), (PASSWORD, "a:b")][..], &[(USER, "root:a:b")]] {
            let members = (ENDPOINTS, "http://10.0.0.1:2379, 10.0.0.2:2379");
            let builder = read(&[user, &[members, (DIAL_TIMEOUT, "1m1.5s")]].concat()).expect("good variables");
            let shown = format!("{builder:?}");
            assert!(shown.contains("10.0.0.2") && shown.contains("root") && !shown.contains("a:b"), "{shown}");
            drop(builder.build().expect("two members"));
        }
        for (text, milliseconds) in [("2s", 2_000), ("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000), ("1us", 0)]
        {
            assert_eq!(go_duration(text).map(|time| time.as_millis()), Some(milliseconds), "{text}");
        }
        for bad in ["", "2", "s", "2x", "-1s", "1 s", "1e3s", "99999999999999999999h", ".", "\u{e9}s"] {
            assert_eq!(go_duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused_by_name_and_no_secret_is_shown() {
        for (variables, says) in [
            (
                &[("ETCDCTL_INSECURE_SKIP_TLS_VERIFY", "T")][..],
                "SKIP_TLS_VERIFY=\"T\": expected false, and ETCDCTL_CACERT",
            ),
            (&[(INSECURE_TRANSPORT, "false")], "INSECURE_TRANSPORT=\"false\": expected ETCDCTL_CACERT beside it"),
            (&[(KEY, "-----BEGIN secret"), (CERT, "a.pem")], "ETCDCTL_KEY=\"(hidden)\": expected the path of a file"),
            (&[("ETCDCTL_DISCOVERY_SRV", "a.b")], "DISCOVERY_SRV=\"a.b\": expected ETCDCTL_ENDPOINTS"),
            (&[(TOKEN, "secret")], "AUTH_JWT_TOKEN=\"(hidden)\": expected ETCDCTL_USER"),
            (&[(USER, "root")], "ETCDCTL_USER=\"(hidden)\": expected user:password"),
            (&[(USER, "root:secret"), (PASSWORD, "secret")], "ETCDCTL_USER=\"(hidden)\": expected no password"),
            (&[(DIAL_TIMEOUT, "soon")], "ETCDCTL_DIAL_TIMEOUT=\"soon\": expected a time"),
            (&[(DIAL_TIMEOUT, "0s")], "ETCDCTL_DIAL_TIMEOUT=\"0s\": expected a time"),
        ] {
            let error = read(variables).expect_err("it cannot be followed").to_string();
            assert!(error.contains(says) && !error.contains("secret"), "{error}");
        }
    }

    #[cfg(feature = "_tls")]
    #[test]
    fn files_that_are_not_there_or_lack_their_other_half_are_named() {
        let read = |variables: &[(&str, &str)]| format!("{:?}", read(variables).expect_err("no such file"));
        assert!(read(&[(CACERT, "/no/ca.pem")]).contains("/no/ca.pem"));
        assert!(read(&[(CERT, "/no/cert.pem"), (KEY, "/no/key.pem")]).contains("/no/cert.pem"));
        assert!(read(&[(CERT, "/no/cert.pem")]).contains("ETCDCTL_KEY"));
        assert!(read(&[(KEY, "/no/key.pem")]).contains("ETCDCTL_CERT"));
    }

    #[cfg(not(feature = "_tls"))]
    #[test]
    fn files_for_tls_are_refused_where_there_is_none() {
        for name in [CACERT, CERT, KEY] {
            let error = read(&[(name, "/a.pem")]).expect_err("there is no TLS").to_string();
            assert!(error.contains(name) && error.contains("tls-ring"), "{error}");
        }
    }
}
