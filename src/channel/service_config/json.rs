//! JSON that is read strictly: nothing in it is passed over, and an error says where it stands.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::ServiceConfigError;

/// A value in which no field stands twice: a plain [`Value`] keeps the last of them without a word.
pub(super) struct Strict(pub(super) Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fields).map(Self)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Strict(value))) = fields.next_entry::<String, Strict>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("the field {name:?} stands twice")));
            }
            object.insert(name, value);
        }
        Ok(object.into())
    }
}

/// A value, and where it stands.
pub(super) struct At<'a> {
    path: String,
    pub(super) value: &'a Value,
}

pub(super) type Read<T> = Result<T, ServiceConfigError>;

impl<'a> At<'a> {
    pub(super) fn root(value: &'a Value) -> Self {
        Self { path: String::new(), value }
    }

    pub(super) fn refuse<T>(&self, problem: impl Into<String>) -> Read<T> {
        Err(ServiceConfigError { path: self.path.clone(), problem: problem.into() })
    }

    pub(super) fn expected<T>(&self, what: &str) -> Read<T> {
        let shown: String = self.value.to_string().chars().take(64).collect();
        self.refuse(format!("{shown} is not {what}"))
    }

    pub(super) fn fields(&self) -> Read<Vec<(&'a str, Self)>> {
        let Value::Object(fields) = self.value else { return self.expected("an object") };
        Ok(self.fields_of(fields))
    }

    fn fields_of(&self, fields: &'a Map<String, Value>) -> Vec<(&'a str, Self)> {
        let dot = if self.path.is_empty() { "" } else { "." };
        let at = |name: &String| format!("{}{dot}{}", self.path, name.escape_debug());
        fields.iter().map(|(name, value)| (name.as_str(), Self { path: at(name), value })).collect()
    }

    pub(super) fn items(&self) -> Read<Vec<Self>> {
        let Value::Array(items) = self.value else { return self.expected("an array") };
        Ok((0..).zip(items).map(|(n, value): (usize, _)| Self { path: format!("{}[{n}]", self.path), value }).collect())
    }

    pub(super) fn text(&self) -> Read<&'a str> {
        self.value.as_str().map_or_else(|| self.expected("a string"), Ok)
    }

    pub(super) fn flag(&self) -> Read<bool> {
        self.value.as_bool().map_or_else(|| self.expected("true or false"), Ok)
    }

    pub(super) fn number(&self) -> Read<f64> {
        self.value.as_f64().map_or_else(|| self.expected("a number"), Ok)
    }

    pub(super) fn whole(&self) -> Read<u32> {
        let whole = self.value.as_u64().and_then(|number| u32::try_from(number).ok());
        whole.map_or_else(|| self.expected("a whole number"), Ok)
    }

    /// As protobuf writes it in JSON: seconds with up to nine decimals, and an `s`.
    pub(super) fn duration(&self) -> Read<Duration> {
        let read = |text: &str| {
            let text = text.strip_suffix('s')?;
            let (seconds, decimals) = text.split_once('.').unwrap_or((text, "0"));
            let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            if !are_digits(seconds) || !are_digits(decimals) || decimals.len() > 9 {
                return None;
            }
            Some(Duration::new(seconds.parse().ok()?, format!("{decimals:0<9}").parse().ok()?))
        };
        self.value.as_str().and_then(read).map_or_else(|| self.expected("a duration such as \"1.5s\""), Ok)
    }
}
