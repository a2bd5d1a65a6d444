//! Values of metadata and their types.

use std::ops::Range;

/// Longest text that is taken out of the file; chat templates are the longest that matter.
pub(super) const MAX_TEXT: usize = 1 << 20;

/// Type of a value, with the ids of the GGUF specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Str,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// The type of this id.
    pub fn from_id(id: u32) -> Option<ValueType> {
        use ValueType::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64].get(id as usize).copied()
    }

    /// Name as in gguf-dump, in lower case.
    pub fn name(self) -> &'static str {
        use ValueType::*;
        match self {
            U8 => "u8",
            I8 => "i8",
            U16 => "u16",
            I16 => "i16",
            U32 => "u32",
            I32 => "i32",
            F32 => "f32",
            Bool => "bool",
            Str => "string",
            Array => "array",
            U64 => "u64",
            I64 => "i64",
            F64 => "f64",
        }
    }

    /// Bytes of a value; strings and arrays vary.
    pub fn size(self) -> Option<usize> {
        use ValueType::*;
        match self {
            U8 | I8 | Bool => Some(1),
            U16 | I16 => Some(2),
            U32 | I32 | F32 => Some(4),
            U64 | I64 | F64 => Some(8),
            Str | Array => None,
        }
    }
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    /// Bytes that need not be UTF-8.
    Str(Vec<u8>),
    /// So many bytes of text, left where they are in the file.
    LongText(usize),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array, left where it is in the file: vocabularies have hundreds of thousands of entries.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// Type of the elements; never an array.
    pub ty: ValueType,
    /// Number of elements.
    pub len: usize,
    /// Bytes of the elements in the file.
    pub(super) data: Range<usize>,
}

impl Array {
    /// The elements of an array of strings; `file` is the file that the array was read from.
    pub fn strings<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        assert_eq!(self.ty, ValueType::Str, "an array of strings");
        let mut rest = &file[self.data.clone()];
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let (string, after) = after.split_at(u64::from_le_bytes(*length) as usize);
            rest = after;
            Some(string)
        })
    }

    /// The elements of an array of numbers or bools.
    pub fn values<'a>(&self, file: &'a [u8]) -> impl Iterator<Item = Value> + use<'a> {
        let ty = self.ty;
        let size = ty.size().expect("an array of numbers");
        file[self.data.clone()].chunks_exact(size).map(move |bytes| Value::decode(ty, bytes))
    }
}

impl Value {
    /// The value of a fixed-size type in its little-endian bytes.
    pub(super) fn decode(ty: ValueType, bytes: &[u8]) -> Value {
        fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("as many bytes as the type has")
        }
        match ty {
            ValueType::U8 => Value::U8(bytes[0]),
            ValueType::I8 => Value::I8(bytes[0] as i8),
            ValueType::U16 => Value::U16(u16::from_le_bytes(le(bytes))),
            ValueType::I16 => Value::I16(i16::from_le_bytes(le(bytes))),
            ValueType::U32 => Value::U32(u32::from_le_bytes(le(bytes))),
            ValueType::I32 => Value::I32(i32::from_le_bytes(le(bytes))),
            ValueType::F32 => Value::F32(f32::from_le_bytes(le(bytes))),
            ValueType::Bool => Value::Bool(bytes[0] == 1),
            ValueType::U64 => Value::U64(u64::from_le_bytes(le(bytes))),
            ValueType::I64 => Value::I64(i64::from_le_bytes(le(bytes))),
            ValueType::F64 => Value::F64(f64::from_le_bytes(le(bytes))),
            ValueType::Str | ValueType::Array => unreachable!("strings and arrays have no fixed size"),
        }
    }

    /// The value's type.
    pub fn value_type(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::Str(_) | Value::LongText(_) => ValueType::Str,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// Any integer.
    pub fn as_i128(&self) -> Option<i128> {
        Some(match *self {
            Value::U8(n) => n.into(),
            Value::I8(n) => n.into(),
            Value::U16(n) => n.into(),
            Value::I16(n) => n.into(),
            Value::U32(n) => n.into(),
            Value::I32(n) => n.into(),
            Value::U64(n) => n.into(),
            Value::I64(n) => n.into(),
            _ => return None,
        })
    }
}
