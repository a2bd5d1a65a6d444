//! One walk over a GGUF header: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashSet;
use std::ops::Range;

use ggml::Type;

use super::metadata::Entry;
use super::tensor::TensorInfo;
use super::value::{Array, MAX_TEXT, Value, ValueType};
use crate::error::{Error, Result, shown};

/// What a header says.
pub struct Header {
    pub version: u32,
    pub entries: Vec<Entry>,
    pub tensors: Vec<TensorInfo>,
    pub data_offset: usize,
}

/// Longest key (GGUF specification).
const MAX_KEY: usize = 65535;
/// Longest tensor name (ggml's GGML_MAX_NAME without its NUL).
const MAX_NAME: usize = 63;
/// Least bytes that a key-value pair takes: empty key, type, one byte.
const MIN_ENTRY: usize = 8 + 4 + 1;
/// Least bytes that a tensor takes: empty name, one dimension.
const MIN_TENSOR: usize = 8 + 4 + 8 + 4 + 8;
/// Most entries and tensors: many times what any model has, and what they take of memory stays small.
const MAX_COUNT: u64 = 1 << 16;
const DEFAULT_ALIGNMENT: u64 = 32;
/// Larger than any page; no writer uses more.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Reads numbers and strings off the bytes, never beyond their end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: u64, what: &str) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if n > left as u64 {
            return Err(Error::malformed(format!(
                "truncated header: {what} needs {n} bytes at byte {}, but the file ends after {left} more (it has {} in \
                 all): download it again",
                self.at,
                self.bytes.len()
            )));
        }
        let start = self.at;
        self.at += n as usize;
        Ok(&self.bytes[start..self.at])
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("eight bytes")))
    }

    /// A string of the header's own: valid UTF-8 within a limit.
    fn name(&mut self, max: usize, what: &str) -> Result<&'a str> {
        let length = self.u64(what)?;
        if length > max as u64 {
            return Err(Error::malformed(format!("{what} is {length} bytes long, expected at most {max}")));
        }
        let bytes = self.take(length, what)?;
        let text = std::str::from_utf8(bytes).map_err(|_| {
            Error::malformed(format!("{what} is not UTF-8 text: '{}'", shown(&String::from_utf8_lossy(bytes))))
        })?;
        if text.is_empty() {
            return Err(Error::malformed(format!("{what} is empty")));
        }
        // For ggml a name ends at its first NUL: two names that differ only after it would be the same.
        if text.contains(char::is_control) {
            return Err(Error::malformed(format!("{what} holds control characters: '{}'", shown(text))));
        }
        Ok(text)
    }

    /// A count of things that take at least `least` bytes each, `max` at most.
    fn count(&mut self, least: usize, max: u64, what: &str) -> Result<usize> {
        let n = self.u64(what)?;
        self.check_count(n, least, max, what)
    }

    fn check_count(&self, n: u64, least: usize, max: u64, what: &str) -> Result<usize> {
        let room = (self.bytes.len() - self.at) / least;
        if n > room as u64 {
            return Err(Error::malformed(format!(
                "the header announces {n} {what}, but the file has room for {room} at most: it is damaged or truncated"
            )));
        }
        if n > max {
            return Err(Error::malformed(format!("the header announces {n} {what}, expected at most {max}")));
        }
        Ok(n as usize)
    }
}

/// Parses and checks the header of a file that begins with a known magic and version.
pub fn parse(bytes: &[u8]) -> Result<Header> {
    let mut r = Reader { bytes, at: 4 };
    let version = r.u32("the version")?;
    let n_tensors = r.u64("the number of tensors")?;
    let n_entries = r.count(MIN_ENTRY, MAX_COUNT, "metadata entries")?;

    let mut entries: Vec<Entry> = Vec::with_capacity(n_entries);
    let mut keys = HashSet::with_capacity(n_entries);
    for i in 0..n_entries {
        let entry = entry(&mut r, i)?;
        if !keys.insert(entry.key.clone()) {
            return Err(Error::malformed(format!("metadata key '{}' appears twice", shown(&entry.key))));
        }
        entries.push(entry);
    }
    let alignment = match entries.iter().find(|e| e.key == "general.alignment").map(|e| &e.value) {
        None => DEFAULT_ALIGNMENT,
        Some(Value::U32(n)) => u64::from(*n),
        Some(other) => {
            return Err(Error::malformed(format!(
                "general.alignment is of type {}, expected u32",
                other.value_type().name()
            )));
        }
    };
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(Error::malformed(format!(
            "general.alignment is {alignment}, expected a power of two up to {MAX_ALIGNMENT}"
        )));
    }

    let n_tensors = r.check_count(n_tensors, MIN_TENSOR, MAX_COUNT, "tensors")?;
    let mut tensors: Vec<TensorInfo> = Vec::with_capacity(n_tensors);
    let mut names = HashSet::with_capacity(n_tensors);
    for i in 0..n_tensors {
        let tensor = tensor(&mut r, i, alignment)?;
        if !names.insert(tensor.name.clone()) {
            return Err(Error::malformed(format!("tensor '{}' appears twice", tensor.name)));
        }
        tensors.push(tensor);
    }
    let data_offset = (r.at as u64).next_multiple_of(alignment);
    check_data(&tensors, data_offset, bytes.len() as u64)?;
    Ok(Header { version, entries, tensors, data_offset: data_offset as usize })
}

fn entry(r: &mut Reader, i: usize) -> Result<Entry> {
    let start = r.at;
    let what = format!("key {i} of the metadata");
    let key = r.name(MAX_KEY, &what)?.to_owned();
    if !key.is_ascii() {
        return Err(Error::malformed(format!("{what} is not ASCII: '{}'", shown(&key))));
    }
    let name = shown(&key);
    let ty = value_type(r, &name)?;
    let value = if ty == ValueType::Array { array(r, &name)? } else { scalar(r, ty, &name)? };
    Ok(Entry { key, value, raw: Some(start..r.at) })
}

fn value_type(r: &mut Reader, key: &str) -> Result<ValueType> {
    let id = r.u32(&format!("the type of '{key}'"))?;
    ValueType::from_id(id)
        .ok_or_else(|| Error::malformed(format!("metadata '{key}' has unknown type {id}, expected 0 to 12")))
}

fn scalar(r: &mut Reader, ty: ValueType, key: &str) -> Result<Value> {
    let what = format!("the value of '{key}'");
    if ty == ValueType::Str {
        let length = r.u64(&what)?;
        let bytes = r.take(length, &what)?;
        return Ok(if bytes.len() > MAX_TEXT { Value::LongText(bytes.len()) } else { Value::Str(bytes.to_vec()) });
    }
    let bytes = r.take(ty.size().expect("neither string nor array") as u64, &what)?;
    if ty == ValueType::Bool && bytes[0] > 1 {
        return Err(Error::malformed(format!(
            "metadata '{key}' is a bool with the value {}, expected 0 or 1",
            bytes[0]
        )));
    }
    Ok(Value::decode(ty, bytes))
}

fn array(r: &mut Reader, key: &str) -> Result<Value> {
    let what = format!("the array '{key}'");
    let ty = value_type(r, key)?;
    let size = match ty {
        ValueType::Array => {
            return Err(Error::unsupported(format!(
                "metadata '{key}' is an array of arrays, which pp-run does not read"
            )));
        }
        ValueType::Str => 8,
        other => other.size().expect("neither string nor array"),
    };
    let len = r.count(size, u64::MAX, &format!("elements of {what}"))?;
    let start = r.at;
    if ty == ValueType::Str {
        for i in 0..len {
            let left = r.bytes.len() - r.at;
            let length = r.u64(&what)?;
            if length > left as u64 {
                return Err(Error::malformed(format!(
                    "string {i} of {what} is {length} bytes long, but the file has {left} bytes left: it is damaged or truncated"
                )));
            }
            r.take(length, &what)?;
        }
    } else {
        let bytes = r.take((len * size) as u64, &what)?;
        if ty == ValueType::Bool && bytes.iter().any(|&b| b > 1) {
            return Err(Error::malformed(format!("{what} holds a bool that is neither 0 nor 1")));
        }
    }
    let data: Range<usize> = start..r.at;
    Ok(Value::Array(Array { ty, len, data }))
}

fn tensor(r: &mut Reader, i: usize, alignment: u64) -> Result<TensorInfo> {
    let name = r.name(MAX_NAME, &format!("the name of tensor {i}"))?.to_owned();
    let bad = |what: String| Error::malformed(format!("tensor '{name}' {what}"));
    let what = format!("tensor '{name}'");
    let n_dims = r.u32(&what)?;
    if !(1..=4).contains(&n_dims) {
        return Err(bad(format!("has {n_dims} dimensions, expected 1 to 4")));
    }
    let mut ne = [1u64; 4];
    let mut elements = 1u64;
    for d in ne.iter_mut().take(n_dims as usize) {
        *d = r.u64(&what)?;
        if *d == 0 {
            return Err(bad("has a dimension of 0".into()));
        }
        // ggml counts in i64.
        elements = elements
            .checked_mul(*d)
            .filter(|&n| n <= i64::MAX as u64)
            .ok_or_else(|| bad("has more elements than 63 bits can count".into()))?;
    }
    let id = r.u32(&what)?;
    let ty = Type::from_id(id).ok_or_else(|| match Type::removed_name(id) {
        Some(old) => Error::unsupported(format!(
            "tensor '{name}' has type {old}, which ggml has removed: use a newer file of this model (Q4_0 is repacked at load)"
        )),
        None => Error::unsupported(format!("tensor '{name}' has type {id}, which this version of pp-run does not know")),
    })?;
    let block = ty.block_size() as u64;
    if !ne[0].is_multiple_of(block) {
        return Err(bad(format!(
            "has rows of {} elements, expected a multiple of {block} for type {}",
            ne[0],
            ty.name()
        )));
    }
    let n_bytes = (elements / block)
        .checked_mul(ty.block_bytes() as u64)
        .filter(|&n| n <= i64::MAX as u64)
        .ok_or_else(|| bad("is larger than 63 bits can count".into()))?;
    let offset = r.u64(&what)?;
    if !offset.is_multiple_of(alignment) {
        return Err(bad(format!("is at offset {offset}, expected a multiple of {alignment} (general.alignment)")));
    }
    Ok(TensorInfo { name, ty, n_dims, ne, part: 0, offset, n_bytes })
}

/// All tensors lie within the file, and no two overlap.
fn check_data(tensors: &[TensorInfo], data_offset: u64, file_bytes: u64) -> Result<()> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    let mut end = 0u64;
    let mut previous: Option<&TensorInfo> = None;
    for t in order {
        if let Some(p) = previous.filter(|_| t.offset < end) {
            return Err(Error::malformed(format!("the data of tensors '{}' and '{}' overlap", p.name, t.name)));
        }
        end = t.offset.checked_add(t.n_bytes).ok_or_else(|| {
            Error::malformed(format!("tensor '{}' ends beyond the largest possible file (offset {})", t.name, t.offset))
        })?;
        previous = Some(t);
    }
    let needed = end
        .checked_add(data_offset)
        .ok_or_else(|| Error::malformed("tensor data ends beyond the largest possible file"))?;
    if !tensors.is_empty() && needed > file_bytes {
        return Err(Error::malformed(format!(
            "truncated: the tensors need {needed} bytes, the file has {file_bytes} ({} missing): download it again",
            needed - file_bytes
        )));
    }
    Ok(())
}
