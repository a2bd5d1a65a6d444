//! Typed access to metadata.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::value::{Array, MAX_TEXT, Value, ValueType};
use crate::error::{Error, Result, shown};

/// A value that replaces one of the file's (`--override-kv`).
#[derive(Debug, Clone, PartialEq)]
pub enum OverrideValue {
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(String),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Value,
    /// Its bytes in the file; none for overrides.
    pub(super) raw: Option<Range<usize>>,
}

impl Entry {
    /// Adds the bytes that an entry whose value is not the file's would have in a file.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend((self.key.len() as u64).to_le_bytes());
        out.extend(self.key.as_bytes());
        out.extend((self.value.value_type() as u32).to_le_bytes());
        match &self.value {
            Value::U8(n) => out.extend(n.to_le_bytes()),
            Value::I8(n) => out.extend(n.to_le_bytes()),
            Value::U16(n) => out.extend(n.to_le_bytes()),
            Value::I16(n) => out.extend(n.to_le_bytes()),
            Value::U32(n) => out.extend(n.to_le_bytes()),
            Value::I32(n) => out.extend(n.to_le_bytes()),
            Value::F32(n) => out.extend(n.to_le_bytes()),
            Value::Bool(b) => out.push(u8::from(*b)),
            Value::U64(n) => out.extend(n.to_le_bytes()),
            Value::I64(n) => out.extend(n.to_le_bytes()),
            Value::F64(n) => out.extend(n.to_le_bytes()),
            Value::Str(s) => {
                out.extend((s.len() as u64).to_le_bytes());
                out.extend(s);
            }
            Value::Array(_) | Value::LongText(_) => unreachable!("overrides are numbers and short texts"),
        }
    }
}

/// The metadata of a file, in its order.
#[derive(Debug)]
pub struct Metadata {
    entries: Vec<Entry>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    pub(super) fn new(entries: Vec<Entry>) -> Metadata {
        let by_key = entries.iter().enumerate().map(|(i, e)| (e.key.clone(), i)).collect();
        Metadata { entries, by_key }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.by_key.get(key).map(|&i| &self.entries[i].value)
    }

    /// All keys, in the file's order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.key.as_str())
    }

    /// Entries whose values are not the file's.
    pub(super) fn replaced(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|e| e.raw.is_none())
    }

    /// `general.architecture`, or an empty string.
    pub fn architecture(&self) -> &str {
        self.str("general.architecture").ok().flatten().unwrap_or("")
    }

    fn wrong(key: &str, got: &Value, expected: &str) -> Error {
        Error::malformed(format!("metadata '{key}' is of type {}, expected {expected}", got.value_type().name()))
    }

    /// An integer that fits in u32.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let n = value.as_i128().ok_or_else(|| Metadata::wrong(key, value, "u32"))?;
        u32::try_from(n)
            .map(Some)
            .map_err(|_| Error::malformed(format!("metadata '{key}' is {n}, expected 0 to {}", u32::MAX)))
    }

    /// A float.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(*x)),
            Some(Value::F64(x)) => Ok(Some(*x as f32)),
            Some(other) => Err(Metadata::wrong(key, other, "f32")),
        }
    }

    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(Metadata::wrong(key, other, "bool")),
        }
    }

    /// A text.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Str(bytes)) => match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(Error::malformed(format!("metadata '{key}' is not UTF-8 text"))),
            },
            Some(Value::LongText(n)) => {
                Err(Error::malformed(format!("metadata '{key}' is a text of {n} bytes, expected at most {MAX_TEXT}")))
            }
            Some(other) => Err(Metadata::wrong(key, other, "string")),
        }
    }

    /// A text of which what is not UTF-8 is replaced: for what is only shown.
    pub fn lossy(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::Str(bytes) => Some(shown(&String::from_utf8_lossy(bytes)).into_owned()),
            Value::LongText(n) => Some(format!("({n} bytes)")),
            _ => None,
        }
    }

    /// An array whose elements are of one of the types.
    pub fn array(&self, key: &str, types: &[ValueType]) -> Result<Option<&Array>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(array)) if types.contains(&array.ty) => Ok(Some(array)),
            Some(Value::Array(array)) => Err(Error::malformed(format!(
                "metadata '{key}' is an array of {}, expected an array of {}",
                array.ty.name(),
                types[0].name()
            ))),
            Some(other) => Err(Metadata::wrong(key, other, &format!("array of {}", types[0].name()))),
        }
    }

    /// Replaces or adds a value. As in llama.cpp the new value must be of the old one's kind.
    pub(super) fn replace(&mut self, key: &str, value: &OverrideValue) -> Result<()> {
        let old = self.get(key);
        let value = match (value, old.map(Value::value_type)) {
            (OverrideValue::Int(n), Some(ty)) => integer(*n, ty)?,
            (OverrideValue::Int(n), None) => match u32::try_from(*n) {
                Ok(n) => Value::U32(n),
                Err(_) => Value::I64(*n),
            },
            (OverrideValue::Float(x), Some(ValueType::F32) | None) => Value::F32(*x as f32),
            (OverrideValue::Float(x), Some(ValueType::F64)) => Value::F64(*x),
            (OverrideValue::Bool(b), Some(ValueType::Bool) | None) => Value::Bool(*b),
            (OverrideValue::Str(s), Some(ValueType::Str) | None) => Value::Str(s.clone().into_bytes()),
            (_, Some(ty)) => return Err(Error::usage(format!("the file has a value of type {} there", ty.name()))),
        };
        let entry = Entry { key: key.to_owned(), value, raw: None };
        match self.by_key.get(key) {
            Some(&i) => self.entries[i] = entry,
            None => {
                self.by_key.insert(key.to_owned(), self.entries.len());
                self.entries.push(entry);
            }
        }
        Ok(())
    }

    /// A GGUF file with the entries whose keys are `wanted`, and no tensors. Long texts are left out; the strings of `emptied`
    /// (an array's key and places in it) are written as empty ones, and the texts of `other` keys are these.
    pub(super) fn write(
        &self,
        file: &[u8],
        wanted: impl Fn(&str) -> bool,
        emptied: Option<(&str, &BTreeSet<usize>)>,
        other: Option<(&str, &str)>,
    ) -> Vec<u8> {
        let wanted = |e: &&Entry| wanted(&e.key) && !matches!(e.value, Value::LongText(_));
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend(0u64.to_le_bytes());
        out.extend((self.entries.iter().filter(wanted).count() as u64).to_le_bytes());
        for entry in self.entries.iter().filter(wanted) {
            if let Some((key, text)) = other.filter(|(key, _)| *key == entry.key) {
                let value = Value::Str(text.into());
                Entry { key: key.to_owned(), value, raw: None }.encode(&mut out);
                continue;
            }
            if let (Some((key, places)), Value::Array(array)) = (emptied, &entry.value)
                && key == entry.key
            {
                out.extend((key.len() as u64).to_le_bytes());
                out.extend(key.as_bytes());
                out.extend((ValueType::Array as u32).to_le_bytes());
                out.extend((ValueType::Str as u32).to_le_bytes());
                out.extend((array.len as u64).to_le_bytes());
                for (i, string) in array.strings(file).enumerate() {
                    let string = if places.contains(&i) { &[] } else { string };
                    out.extend((string.len() as u64).to_le_bytes());
                    out.extend(string);
                }
                continue;
            }
            if let Some(raw) = &entry.raw {
                out.extend_from_slice(&file[raw.clone()]);
                continue;
            }
            entry.encode(&mut out);
        }
        out
    }
}

/// `n` as a value of the integer type `ty`.
fn integer(n: i64, ty: ValueType) -> Result<Value> {
    let range = || Error::usage(format!("{n} does not fit in the file's type {}", ty.name()));
    Ok(match ty {
        ValueType::U8 => Value::U8(n.try_into().map_err(|_| range())?),
        ValueType::I8 => Value::I8(n.try_into().map_err(|_| range())?),
        ValueType::U16 => Value::U16(n.try_into().map_err(|_| range())?),
        ValueType::I16 => Value::I16(n.try_into().map_err(|_| range())?),
        ValueType::U32 => Value::U32(n.try_into().map_err(|_| range())?),
        ValueType::I32 => Value::I32(n.try_into().map_err(|_| range())?),
        ValueType::U64 => Value::U64(n.try_into().map_err(|_| range())?),
        ValueType::I64 => Value::I64(n),
        other => return Err(Error::usage(format!("the file has a value of type {} there", other.name()))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One entry of each type of number, with its bytes in a file.
    fn numbers() -> [(ValueType, &'static str, Value, Vec<u8>); 11] {
        use ValueType::*;
        [
            (U8, "u8", Value::U8(200), vec![200]),
            (I8, "i8", Value::I8(-2), vec![254]),
            (U16, "u16", Value::U16(300), vec![44, 1]),
            (I16, "i16", Value::I16(-2), vec![254, 255]),
            (U32, "u32", Value::U32(5), vec![5, 0, 0, 0]),
            (I32, "i32", Value::I32(-1), vec![255; 4]),
            (F32, "f32", Value::F32(0.5), 0.5f32.to_le_bytes().into()),
            (Bool, "bool", Value::Bool(true), vec![1]),
            (U64, "u64", Value::U64(7), 7u64.to_le_bytes().into()),
            (I64, "i64", Value::I64(-7), (-7i64).to_le_bytes().into()),
            (F64, "f64", Value::F64(0.25), 0.25f64.to_le_bytes().into()),
        ]
    }

    fn metadata() -> Metadata {
        let entry = |key: &str, value| Entry { key: key.into(), value, raw: None };
        let mut entries: Vec<Entry> = numbers().into_iter().map(|(_, name, value, _)| entry(name, value)).collect();
        entries.push(entry("text", Value::Str(b"a\xff".to_vec())));
        entries.push(entry("long", Value::LongText(9)));
        Metadata::new(entries)
    }

    #[test]
    fn numbers_of_all_types() {
        let meta = metadata();
        for (id, (ty, name, value, bytes)) in numbers().into_iter().enumerate() {
            assert_eq!(Value::decode(ty, &bytes), value);
            assert_eq!((value.value_type(), ty.name(), ty.size()), (ty, name, Some(bytes.len())));
            assert_eq!(ValueType::from_id(if id < 8 { id } else { id + 2 } as u32), Some(ty));
            assert_eq!(value.as_i128().is_some(), !matches!(ty, ValueType::F32 | ValueType::F64 | ValueType::Bool));
            assert_eq!(meta.get(name), Some(&value));
        }
        assert_eq!((ValueType::Str.size(), ValueType::Array.size()), (None, None));
        assert_eq!((meta.f32("f64").unwrap(), meta.bool("bool").unwrap()), (Some(0.25), Some(true)));
        assert_eq!((meta.f32("none").unwrap(), meta.bool("none").unwrap()), (None, None));
        assert!(meta.bool("u8").unwrap_err().to_string().contains("of type u8, expected bool"));
        assert!(meta.str("text").unwrap_err().to_string().contains("not UTF-8"));
        let lossy = |key: &str| meta.lossy(key);
        assert_eq!(lossy("text").as_deref(), Some("a\u{fffd}"));
        assert_eq!(lossy("long").as_deref(), Some("(9 bytes)"));
        assert_eq!((lossy("u8"), lossy("none")), (None, None));
    }

    #[test]
    #[should_panic(expected = "no fixed size")]
    fn texts_are_not_decoded() {
        Value::decode(ValueType::Str, &[]);
    }

    #[test]
    #[should_panic(expected = "overrides are numbers")]
    fn arrays_are_written_as_the_file_has_them() {
        let value = Value::Array(Array { ty: ValueType::U8, len: 0, data: 0..0 });
        Metadata::new(vec![Entry { key: "a".into(), value, raw: None }]).write(&[], |_| true, None, None);
    }

    #[test]
    fn values_are_replaced_by_their_kind_only() {
        let mut meta = metadata();
        for (name, good, bad) in
            [("u8", 255, -1), ("i8", -128, 128), ("u16", 65535, 65536), ("i16", -1, 40000), ("u32", 1, -1)]
        {
            meta.replace(name, &OverrideValue::Int(good)).unwrap();
            assert_eq!(meta.get(name).unwrap().as_i128(), Some(good.into()));
            let error = meta.replace(name, &OverrideValue::Int(bad)).unwrap_err();
            assert!(error.to_string().contains("does not fit"), "{name}: {error}");
        }
        for name in ["i32", "u64", "i64"] {
            meta.replace(name, &OverrideValue::Int(3)).unwrap();
        }
        assert!(meta.replace("u64", &OverrideValue::Int(-3)).is_err());
        assert!(meta.replace("i32", &OverrideValue::Int(1 << 40)).is_err());
        for (name, value) in [
            ("f32", OverrideValue::Float(1.5)),
            ("f64", OverrideValue::Float(1.5)),
            ("bool", OverrideValue::Bool(false)),
            ("text", OverrideValue::Str("b".into())),
            ("new int", OverrideValue::Int(4)),
            ("new large", OverrideValue::Int(-4)),
            ("new float", OverrideValue::Float(0.5)),
            ("new bool", OverrideValue::Bool(true)),
            ("new text", OverrideValue::Str("c".into())),
        ] {
            meta.replace(name, &value).unwrap();
        }
        for (name, value) in
            [("f32", OverrideValue::Int(1)), ("u8", OverrideValue::Float(1.0)), ("u8", OverrideValue::Str("x".into()))]
        {
            let error = meta.replace(name, &value).unwrap_err();
            assert!(error.to_string().contains("a value of type"), "{name}: {error}");
        }
        // All of it can be written and read again, but for the text that is too long.
        let bytes = meta.write(&[], |key| key != "new float", None, None);
        let again = super::super::Gguf::of_bytes(std::path::Path::new("m"), &bytes).unwrap();
        assert_eq!(again.metadata().entries.len(), meta.entries.len() - 2);
        for entry in &again.metadata().entries {
            assert_eq!(Some(&entry.value), meta.get(&entry.key), "{}", entry.key);
        }
    }
}
