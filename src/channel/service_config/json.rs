//! JSON that is read strictly, or with a list of all that is passed over: an error, and an item of the list, says where
//! it stands.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::ServiceConfigError;

/// JSON in which no field stands twice. A [`Value`] would keep the last of them silently.
pub(crate) struct NoFieldTwice;

impl<'de> Deserialize<'de> for NoFieldTwice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for NoFieldTwice {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        let mut names = HashSet::new();
        while let Some((name, Self)) = fields.next_entry::<String, Self>()? {
            if let Some(name) = names.replace(name) {
                return Err(A::Error::custom(format!("the field {name:?} stands twice")));
            }
        }
        Ok(self)
    }
}

/// What was passed over.
pub(crate) type Ignored = RefCell<Vec<ServiceConfigError>>;

/// A value, and where it stands.
pub(crate) struct At<'a> {
    path: String,
    pub(crate) value: &'a Value,
    /// Takes what is not supported, which is refused without it.
    ignored: Option<&'a Ignored>,
}

pub(crate) type Read<T> = Result<T, ServiceConfigError>;

impl<'a> At<'a> {
    pub(crate) fn root(value: &'a Value, ignored: Option<&'a Ignored>) -> Self {
        Self { path: String::new(), value, ignored }
    }

    /// It is not supported: an error, or passed over and listed.
    pub(crate) fn unsupported(&self, why: &str) -> Read<()> {
        if self.ignored.is_none() {
            return self.refuse(why);
        }
        self.pass_over(why);
        Ok(())
    }

    /// It is no field of what stands there.
    pub(crate) fn unknown(&self, expected: &[&str]) -> Read<()> {
        match expected {
            [] => self.unsupported("not known: this policy has no options"),
            _ => self.unsupported(&format!("not known: expected {}", expected.join(", "))),
        }
    }

    /// It does not count, which is as it should be, and listed where such a list is made.
    pub(crate) fn pass_over(&self, why: &str) {
        if let Some(ignored) = self.ignored {
            ignored.borrow_mut().push(ServiceConfigError { path: self.path.clone(), problem: why.to_owned() });
        }
    }

    pub(crate) fn refuse<T>(&self, problem: impl Into<String>) -> Read<T> {
        Err(ServiceConfigError { path: self.path.clone(), problem: problem.into() })
    }

    pub(crate) fn expected<T>(&self, what: &str) -> Read<T> {
        let shown: String = self.value.to_string().chars().take(64).collect();
        self.refuse(format!("{shown} is not {what}"))
    }

    /// Its fields. One that is `null` is not there, as protobuf reads JSON.
    pub(crate) fn fields(&self) -> Read<Vec<(&'a str, Self)>> {
        let Value::Object(fields) = self.value else { return self.expected("an object") };
        Ok(self.fields_of(fields))
    }

    fn fields_of(&self, fields: &'a Map<String, Value>) -> Vec<(&'a str, Self)> {
        let dot = if self.path.is_empty() { "" } else { "." };
        let at = |name: &String| format!("{}{dot}{}", self.path, name.escape_debug());
        let field = |(name, value): (&'a String, &'a Value)| {
            (name.as_str(), Self { path: at(name), value, ignored: self.ignored })
        };
        fields.iter().filter(|(_, value)| !value.is_null()).map(field).collect()
    }

    pub(crate) fn items(&self) -> Read<Vec<Self>> {
        let Value::Array(items) = self.value else { return self.expected("an array") };
        let item = |(n, value): (usize, _)| Self { path: format!("{}[{n}]", self.path), value, ignored: self.ignored };
        Ok((0..).zip(items).map(item).collect())
    }

    pub(crate) fn text(&self) -> Read<&'a str> {
        self.value.as_str().map_or_else(|| self.expected("a string"), Ok)
    }

    pub(crate) fn flag(&self) -> Read<bool> {
        self.value.as_bool().map_or_else(|| self.expected("true or false"), Ok)
    }

    /// A number, or one in a string, as protobuf reads both.
    pub(crate) fn number(&self) -> Read<f64> {
        self.any_number().map_or_else(|| self.expected("a number"), Ok)
    }

    fn any_number(&self) -> Option<f64> {
        let is_of_numbers = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        let text = || self.value.as_str().filter(|text| text.bytes().all(is_of_numbers))?.parse().ok();
        self.value.as_f64().or_else(text).filter(|number: &f64| number.is_finite())
    }

    /// A whole number, or one in a string, which is how protobuf writes those of 64 bits. `1.0` and `1e3` are whole.
    pub(crate) fn whole(&self) -> Read<u32> {
        let whole = self.any_whole().and_then(|number| u32::try_from(number).ok());
        whole.map_or_else(|| self.expected(A_WHOLE_NUMBER), Ok)
    }

    /// A whole number that is a limit: one above 32 bits is none.
    pub(crate) fn limit(&self) -> Read<Option<u32>> {
        let whole = self.any_whole().map(|number| u32::try_from(number).ok());
        whole.map_or_else(|| self.expected(A_WHOLE_NUMBER), Ok)
    }

    fn any_whole(&self) -> Option<u64> {
        let text = || self.value.as_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok();
        let float = || self.any_number().filter(|number| *number >= 0.0 && number.fract() == 0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is whole, and beyond is the most"
        )]
        let of_float = || float().map(|number| number as u64);
        self.value.as_u64().or_else(text).or_else(of_float)
    }

    pub(crate) fn percent(&self) -> Read<u8> {
        let percent = u8::try_from(self.whole()?).ok().filter(|percent| *percent <= 100);
        percent.map_or_else(|| self.expected("a percentage from 0 to 100"), Ok)
    }

    /// As protobuf writes it in JSON: seconds with up to nine decimals, and an `s`.
    pub(crate) fn duration(&self) -> Read<Duration> {
        let read = |text: &str| {
            let text = text.strip_suffix('s')?;
            let (seconds, decimals) = text.split_once('.').unwrap_or((text, ""));
            let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if !are_digits(&format!("{seconds}{decimals}")) || decimals.len() > 9 {
                return None;
            }
            // Either side of the point may be empty: `.1s` is common.
            Some(Duration::new(format!("0{seconds}").parse().ok()?, format!("{decimals:0<9}").parse().ok()?))
        };
        self.value.as_str().and_then(read).map_or_else(|| self.expected("a duration such as \"1.5s\""), Ok)
    }
}

const A_WHOLE_NUMBER: &str = "a whole number from 0 to 4294967295";
