//! JSON as Go's `encoding/json` writes and reads it, for the formats of systems that are written in Go.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{DecodeError, ReweighError};

/// Writes the bytes that Go would write for the same fields.
///
/// For structs and maps of strings and numbers: in those there is nothing that could fail to serialize.
pub(super) fn write(value: &impl Serialize) -> Vec<u8> {
    let json = serde_json::to_string(value).unwrap_or_default();
    escape(&json).into_bytes()
}

/// Go's encoder escapes what HTML would misread, and the same bytes need the same escapes. In JSON these characters
/// stand in strings only.
fn escape(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Reads an object as Go reads one into a struct: names match without regard to case, unknown fields are ignored,
/// `null` leaves a field as it was, and a wrong type spoils the value.
pub(super) fn read<T: Fields>(json: &[u8]) -> Result<T, DecodeError> {
    let object: Object<T> = serde_json::from_slice(json).map_err(|error| DecodeError::new(error.to_string()))?;
    Ok(object.0)
}

/// The fields of an object.
pub(super) trait Fields: Default {
    /// What an error says was expected.
    const EXPECTED: &'static str;

    /// Takes the field of this name, which is in lower case. `false`: there is no such field, and its value is not
    /// taken.
    fn take<'de, A: MapAccess<'de>>(&mut self, name: &str, value: &mut A) -> Result<bool, A::Error>;
}

/// Takes a field's value, unless it is `null`.
pub(super) fn take<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    field: &mut Option<T>,
    value: &mut A,
) -> Result<bool, A::Error> {
    if let Some(value) = value.next_value::<Option<T>>()? {
        *field = Some(value);
    }
    Ok(true)
}

/// Takes a map of strings, in which `null` stands for the empty one.
pub(super) fn take_strings<'de, A: MapAccess<'de>>(
    field: &mut BTreeMap<String, String>,
    value: &mut A,
) -> Result<bool, A::Error> {
    let strings: Option<BTreeMap<String, Option<String>>> = value.next_value()?;
    *field = strings.into_iter().flatten().map(|(name, value)| (name, value.unwrap_or_default())).collect();
    Ok(true)
}

/// Takes the draining mark. It is ours alone, so that a field of that name with anything else in it spoils nothing.
pub(super) fn take_mark<'de, A: MapAccess<'de>>(field: &mut bool, value: &mut A) -> Result<bool, A::Error> {
    *field = value.next_value::<Value>()? == Value::Bool(true);
    Ok(true)
}

/// An object with the draining mark as its last field, and otherwise byte for byte as it was.
pub(super) fn mark(object: &[u8]) -> Option<Vec<u8>> {
    let fields = object.trim_ascii_end().strip_suffix(b"}")?;
    let separator: &[u8] = if fields.trim_ascii_end().ends_with(b"{") { b"" } else { b"," };
    Some([fields, separator, b"\"draining\":true}"].concat())
}

/// The fields of an object, in their order, with their values as they were written.
#[derive(Default)]
pub(super) struct RawFields<'a>(Vec<(String, Cow<'a, str>)>);

impl<'a> RawFields<'a> {
    /// `None` if it is no object.
    pub(super) fn of(object: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(object).ok()
    }

    /// The last field of this name, as it was written.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rfind(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    /// The fields of an object in the last field of this name, which may be absent or `null`.
    pub(super) fn object(&self, name: &str) -> Option<RawFields<'_>> {
        match self.get(name) {
            None | Some("null") => Some(RawFields::default()),
            Some(value) => RawFields::of(value.as_bytes()),
        }
    }

    /// Sets the value of every field of this name, or of a new one at the end.
    pub(super) fn set(&mut self, name: &str, value: String) {
        let value = Cow::<str>::Owned(value);
        let mut is_there = false;
        for (_, known) in self.0.iter_mut().filter(|(known, _)| known == name) {
            is_there = true;
            known.clone_from(&value);
        }
        if !is_there {
            self.0.push((name.to_owned(), value));
        }
    }

    /// The object as text.
    pub(super) fn write(&self) -> String {
        let fields: Vec<String> = self.0.iter().map(|(name, value)| format!("{}:{value}", quoted(name))).collect();
        format!("{{{}}}", fields.join(","))
    }

    /// The object with this value in the field that holds the weight, and the mark that an operator set it: a list of
    /// what the field held before, which is empty where there was none.
    pub(super) fn reweigh(mut self, name: &str, value: String) -> Result<Vec<u8>, ReweighError> {
        let mark = match (self.get(REWEIGHED), self.get(name)) {
            // The first one keeps what the server wrote.
            (Some(mark), _) if list(mark).is_some() => None,
            (Some(_), _) => return Err(ReweighError::new("its mark is not one of ours")),
            (None, before) => Some(format!("[{}]", before.unwrap_or_default())),
        };
        self.set(name, value);
        if let Some(mark) = mark {
            self.set(REWEIGHED, mark);
        }
        Ok(self.write().into_bytes())
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }
}

/// What an object was before an operator set the weight in the field of this name; `None` without the mark of it.
pub(super) fn former(object: &[u8], name: &str) -> Option<Vec<u8>> {
    let mut fields = RawFields::of(object)?;
    let before = list(fields.get(REWEIGHED)?)?.first().map(|before| before.get().to_owned());
    match before {
        Some(before) => fields.set(name, before),
        None => fields.remove(name),
    }
    fields.remove(REWEIGHED);
    Some(fields.write().into_bytes())
}

/// A list of one value at most.
fn list(json: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(json).ok().filter(|list: &Vec<&RawValue>| list.len() <= 1)
}

/// The mark that an operator set a weight.
const REWEIGHED: &str = "reweighed";

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    escape(&Value::from(text).to_string())
}

impl<'de: 'a, 'a> Deserialize<'de> for RawFields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawFieldsVisitor(PhantomData))
    }
}

struct RawFieldsVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for RawFieldsVisitor<'a> {
    type Value = RawFields<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawFields<'a>, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
            fields.push((name, Cow::Borrowed(value.get())));
        }
        Ok(RawFields(fields))
    }
}

struct Object<T>(T);

impl<'de, T: Fields> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Fields> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<T>, A::Error> {
        let mut fields = T::default();
        while let Some(mut name) = map.next_key::<String>()? {
            name.make_ascii_lowercase();
            if !fields.take(&name, &mut map)? {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Object(fields))
    }
}
