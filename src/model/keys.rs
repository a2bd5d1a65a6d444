//! Metadata by the names that an architecture gives it.

use crate::error::{Error, Result};
use crate::gguf::Metadata;

/// Metadata of one architecture: keys are prefixed with its name.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// All metadata
    pub meta: &'a Metadata,
    /// The architecture
    pub arch: &'a str,
}

impl Keys<'_> {
    /// A number, if there is one.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.meta.u32(&format!("{}.{key}", self.arch))
    }

    /// A float, if there is one.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.meta.f32(&format!("{}.{key}", self.arch))
    }

    /// A text, if there is one.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.meta.str(&format!("{}.{key}", self.arch))
    }

    /// The error for a key that is required.
    pub fn missing(&self, key: &str) -> Error {
        Error::malformed(format!("metadata key '{}.{key}' is missing", self.arch))
    }

    /// A required number within limits.
    pub fn count(&self, key: &str, min: u32, max: u32) -> Result<usize> {
        let n = self.u32(key)?.ok_or_else(|| self.missing(key))?;
        if !(min..=max).contains(&n) {
            return Err(Error::malformed(format!("{}.{key} is {n}, expected {min} to {max}", self.arch)));
        }
        Ok(n as usize)
    }
}
