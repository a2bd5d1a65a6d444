//! Arguments as Python's functions take them.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, Value};

use super::text::failed;

/// Widest padding and indentation: a few characters of a template could ask for more than there is.
const MAX_WIDTH: i64 = 1 << 20;

/// Arguments by place or by name.
pub struct Args<'a> {
    /// Those by place
    pub placed: &'a [Value],
    /// Those by name
    pub named: Kwargs,
}

impl<'a> Args<'a> {
    /// Of a method or a function.
    pub fn new(args: &'a [Value]) -> Result<Args<'a>, Error> {
        let (placed, named) = from_args(args)?;
        Ok(Args { placed, named })
    }

    /// The argument, unless it is left out.
    pub fn given(&self, i: usize, name: &str) -> Result<Option<Value>, Error> {
        match self.placed.get(i) {
            Some(value) => Ok(Some(value.clone())),
            None if self.named.has(name) => self.named.get(name).map(Some),
            None => Ok(None),
        }
    }

    /// The argument, unless it is left out or `None`.
    pub fn value(&self, i: usize, name: &str) -> Result<Option<Value>, Error> {
        Ok(self.given(i, name)?.filter(|v| !v.is_none()))
    }

    /// Whether the argument is given and true.
    pub fn truth(&self, i: usize, name: &str) -> Result<bool, Error> {
        Ok(self.value(i, name)?.is_some_and(|v| v.is_true()))
    }

    /// A string, which may be left out.
    pub fn optional_string(&self, i: usize, name: &str) -> Result<Option<String>, Error> {
        let string = |v: Value| v.as_str().map(str::to_owned).ok_or_else(|| failed(format!("{name} must be a string")));
        self.value(i, name)?.map(string).transpose()
    }

    /// A string.
    pub fn string(&self, i: usize, name: &str) -> Result<String, Error> {
        self.optional_string(i, name)?.ok_or_else(|| failed(format!("{name} is missing")))
    }

    /// An integer, which may be left out.
    pub fn int(&self, i: usize, name: &str) -> Result<Option<i64>, Error> {
        let int = |v: Value| v.as_i64().ok_or_else(|| failed(format!("{name} must be an integer")));
        self.value(i, name)?.map(int).transpose()
    }

    /// A number of characters.
    pub fn width(&self, i: usize, name: &str) -> Result<Option<usize>, Error> {
        match self.int(i, name)? {
            Some(n) if n > MAX_WIDTH => Err(failed(format!("{name} is too great"))),
            n => Ok(n.map(|n| usize::try_from(n).unwrap_or(0))),
        }
    }

    /// There are no others, and no more than `n` by place.
    pub fn done(&self, n: usize) -> Result<(), Error> {
        self.named.assert_all_used()?;
        if self.placed.len() > n { Err(failed("there are too many arguments")) } else { Ok(()) }
    }
}
