//! Which address to publish: an explicit one, else that of Kitex's environment, else the listener's; and where the
//! listener listens everywhere, that of Kubernetes' `POD_IP`, else that on the way to etcd, else the first address of
//! an interface that it listens on and that other hosts can reach; on a host without any, the loopback address, if etcd
//! is on this host, too.

use std::net::IpAddr;

use crate::error::ConfigError;
use crate::instance::{Address, Host, parse_host};

/// The address to publish.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Advertised {
    pub(super) address: Address,
    /// Whether our own listener is bound to the address: a key of this address under another lease, even a live one, is
    /// then left over from a process that cannot be listening any more.
    pub(super) is_bound: bool,
}

/// Chooses the address. `variable` reads the environment, `route` tells the address that the machine has towards
/// others, of IPv6 only if that is wanted, and `interfaces` lists all that it has. `is_etcd_local` says whether etcd is
/// on this host.
pub(super) fn advertise(
    explicit: Option<Address>,
    listener: &Address,
    is_etcd_local: bool,
    variable: impl Fn(&str) -> Option<String>,
    route: impl FnOnce(bool) -> Option<IpAddr>,
    interfaces: impl FnOnce() -> std::io::Result<Vec<IpAddr>>,
) -> Result<Advertised, ConfigError> {
    if let Some(address) = explicit {
        return Ok(Advertised { is_bound: address == *listener, address });
    }
    let host = variable(IP_VARIABLE).filter(|value| !value.is_empty());
    let port = variable(PORT_VARIABLE).filter(|value| !value.is_empty());
    let from_environment = host.is_some() || port.is_some();
    let port = match port {
        Some(value) => value.parse().ok().filter(|port| *port > 0).ok_or(ConfigError::Environment {
            variable: PORT_VARIABLE,
            value,
            expected: "a port from 1 to 65535",
        })?,
        None => listener.port(),
    };
    let everywhere = unspecified(listener);
    let host = match (host, everywhere) {
        (Some(value), _) => host_in_variable(&value)?,
        (None, Some(ip)) => Host::Ip(match pod_ip(&variable, ip)?.or_else(|| route(ip.is_ipv6())) {
            Some(reachable) => reachable,
            None => first_reachable(ip, is_etcd_local, &interfaces().map_err(interface_error)?)?,
        }),
        (None, None) => listener.host().clone(),
    };
    let address = Address::new(host, port);
    let is_bound = address == *listener || (!from_environment && everywhere.is_some());
    Ok(Advertised { address, is_bound })
}

fn host_in_variable(value: &str) -> Result<Host, ConfigError> {
    // Kitex takes a bare IPv6 address here.
    if let Ok(ip) = value.parse::<IpAddr>() {
        return Ok(Host::Ip(ip));
    }
    parse_host(value).map_err(|_| ConfigError::Environment {
        variable: IP_VARIABLE,
        value: value.to_owned(),
        expected: "an IP address or a DNS name",
    })
}

/// What a pod's definition says that its address is, for a server that listens on all addresses of this kind.
fn pod_ip(variable: impl Fn(&str) -> Option<String>, listener: IpAddr) -> Result<Option<IpAddr>, ConfigError> {
    let Some(value) = variable(POD_VARIABLE).filter(|value| !value.is_empty()) else { return Ok(None) };
    let ip = value.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    let (ip, expected) = if listener.is_ipv4() {
        (ip.filter(IpAddr::is_ipv4), "an IPv4 address, as the server listens on 0.0.0.0; [::] takes both")
    } else {
        (ip, "an IP address")
    };
    ip.map(Some).ok_or(ConfigError::Environment { variable: POD_VARIABLE, value, expected })
}

/// The IP of a listener that listens everywhere.
fn unspecified(listener: &Address) -> Option<IpAddr> {
    match listener.host() {
        Host::Ip(ip) => Some(ip.to_canonical()).filter(IpAddr::is_unspecified),
        Host::Name(_) => None,
    }
}

/// The first IPv4 address that is neither loopback nor link-local, as Kitex chooses; on a host without one, the first
/// such IPv6 address, unless the `listener` is 0.0.0.0, which takes no connections over IPv6. On a host that is on no
/// network, the loopback address will do where etcd is on this host: clients that reach that etcd are on this host,
/// too.
fn first_reachable(listener: IpAddr, is_etcd_local: bool, interfaces: &[IpAddr]) -> Result<IpAddr, ConfigError> {
    let first = |fits: &dyn Fn(&IpAddr) -> bool| {
        let v4 = interfaces.iter().find(|ip| ip.is_ipv4() && fits(ip));
        v4.or_else(|| interfaces.iter().find(|ip| ip.is_ipv6() && listener.is_ipv6() && fits(ip))).copied()
    };
    let reachable = |ip: &IpAddr| !ip.is_loopback() && Address::new(Host::Ip(*ip), 1).check_dialable().is_ok();
    let local = || first(&IpAddr::is_loopback).filter(|_| is_etcd_local);
    first(&reachable).or_else(local).ok_or_else(|| ConfigError::Address {
        address: listener.to_string(),
        reason: if listener.is_ipv4() {
            "no interface has an IPv4 address that others can reach; listen on [::], or state one with advertise(..)"
        } else {
            "no interface has an address that others can reach; state one with advertise(..)"
        },
    })
}

fn interface_error(source: std::io::Error) -> ConfigError {
    ConfigError::Interfaces { source }
}

/// Kitex's variable for the published host.
const IP_VARIABLE: &str = "KITEX_IP_TO_REGISTRY";

/// The variable that a pod's definition gives its address, by convention.
const POD_VARIABLE: &str = "POD_IP";

/// Kitex's variable for the published port.
const PORT_VARIABLE: &str = "KITEX_PORT_TO_REGISTRY";

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(explicit: Option<&str>, listener: &str, environment: &[(&str, &str)]) -> Result<Advertised, ConfigError> {
        let variable =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        let route = |_| None;
        let interfaces = || {
            Ok(["127.0.0.1", "fe80::1", "169.254.0.9", "10.0.0.7", "10.0.0.8"]
                .map(|ip| ip.parse().expect("an IP"))
                .to_vec())
        };
        let explicit = explicit.map(|text| text.parse().expect("an address"));
        advertise(explicit, &listener.parse().expect("an address"), false, variable, route, interfaces)
    }

    #[test]
    fn a_server_that_listens_everywhere_is_where_its_pod_is_or_where_the_route_to_etcd_begins() {
        let chosen = |listener: &str, pod: Option<&str>| {
            let variable = |name: &str| pod.filter(|_| name == POD_VARIABLE).map(str::to_owned);
            let route = |takes_v6| {
                let ip = if takes_v6 { "2001:db8::7" } else { "10.0.0.9" };
                Some(ip.parse().expect("an IP"))
            };
            let interfaces = || Ok(vec!["172.17.0.1".parse().expect("an IP")]);
            advertise(None, &listener.parse().expect("an address"), true, variable, route, interfaces)
                .map(|advertised| (advertised.address.to_string(), advertised.is_bound))
        };
        for (listener, pod, address) in [
            ("0.0.0.0:80", None, "10.0.0.9:80"),
            ("[::]:80", None, "[2001:db8::7]:80"),
            ("0.0.0.0:80", Some("10.1.1.1"), "10.1.1.1:80"),
            ("0.0.0.0:80", Some(""), "10.0.0.9:80"),
            ("127.0.0.1:80", Some("10.1.1.1"), "127.0.0.1:80"),
        ] {
            assert_eq!(chosen(listener, pod).expect(listener), (address.to_owned(), true), "{listener} {pod:?}");
        }
        let error = chosen("0.0.0.0:80", Some("here")).expect_err("that is no address");
        assert!(error.to_string().contains("POD_IP"), "{error}");
        let error = chosen("0.0.0.0:80", Some("2001:db8::9")).expect_err("nothing listens there");
        assert!(error.to_string().contains("[::] takes both"), "{error}");
        assert_eq!(chosen("[::]:80", Some("2001:db8::9")).expect("it listens there").0, "[2001:db8::9]:80");
    }

    #[test]
    fn explicit_comes_before_environment_before_listener_before_interface() {
        let environment = [(IP_VARIABLE, "10.1.1.1"), (PORT_VARIABLE, "99")];
        for (explicit, listener, environment, chosen, is_bound) in [
            (Some("a:1"), "127.0.0.1:80", &environment[..], "a:1", false),
            (Some("127.0.0.1:80"), "127.0.0.1:80", &environment[..], "127.0.0.1:80", true),
            (None, "127.0.0.1:80", &environment[..], "10.1.1.1:99", false),
            (None, "127.0.0.1:80", &environment[..1], "10.1.1.1:80", false),
            (None, "127.0.0.1:80", &environment[1..], "127.0.0.1:99", false),
            (None, "127.0.0.1:80", &[], "127.0.0.1:80", true),
            (None, "0.0.0.0:80", &[], "10.0.0.7:80", true),
            (None, "[::]:80", &[], "10.0.0.7:80", true),
            (None, "0.0.0.0:80", &environment[1..], "10.0.0.7:99", false),
            (None, "[2001:db8::1]:80", &[], "[2001:db8::1]:80", true),
            (None, "127.0.0.1:80", &[(IP_VARIABLE, "2001:db8::2")], "[2001:db8::2]:80", false),
        ] {
            let advertised = choose(explicit, listener, environment).expect("an address can be chosen");
            assert_eq!(advertised.address.to_string(), chosen, "{explicit:?} {listener} {environment:?}");
            assert_eq!(advertised.is_bound, is_bound, "{explicit:?} {listener} {environment:?}");
        }
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        for variable in [(IP_VARIABLE, "a b"), (PORT_VARIABLE, "0"), (PORT_VARIABLE, "x"), (PORT_VARIABLE, "65536")] {
            let error = choose(None, "127.0.0.1:80", &[variable]).expect_err("a bad value");
            assert!(error.to_string().contains(variable.0), "{error} names the variable");
        }
    }

    #[test]
    fn a_host_without_ipv4_publishes_its_global_ipv6_if_the_listener_takes_that() {
        let ip = |text: &str| text.parse().expect("an IP");
        let v6_alone = [ip("::1"), ip("fe80::1"), ip("2001:db8::1")];
        assert_eq!(first_reachable(ip("::"), true, &v6_alone).expect("one"), ip("2001:db8::1"));
        let error = first_reachable(ip("0.0.0.0"), true, &v6_alone).expect_err("nothing listens there");
        assert!(error.to_string().contains("[::]"), "{error} says what to do");
        assert!(first_reachable(ip("::"), false, &[ip("::1"), ip("127.0.0.1")]).is_err());
    }

    #[test]
    fn a_host_on_no_network_publishes_its_loopback_address_where_etcd_is_on_it_too() {
        let ip = |text: &str| text.parse().expect("an IP");
        let loopback = [ip("::1"), ip("127.0.0.1"), ip("fe80::1")];
        for (listener, published) in [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1")] {
            let found = first_reachable(ip(listener), true, &loopback).expect("clients are on this host as well");
            assert_eq!(found, ip(published), "{listener}");
            first_reachable(ip(listener), false, &loopback).expect_err("clients of that etcd are elsewhere");
        }
        assert_eq!(first_reachable(ip("::"), true, &[ip("::1")]).expect("there is no other"), ip("::1"));
        let networks = [ip("127.0.0.1"), ip("10.0.0.7")];
        assert_eq!(
            first_reachable(ip("::"), true, &networks).expect("one"),
            ip("10.0.0.7"),
            "clients may be elsewhere"
        );
    }
}
