//! Metadata by the names that an architecture gives it.

use crate::error::{Error, Result};
use crate::gguf::{Metadata, Value, ValueType};

/// Metadata of one architecture: keys are prefixed with its name.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// All metadata
    pub meta: &'a Metadata,
    /// The architecture
    pub arch: &'a str,
    /// The file, for the values of arrays
    pub file: &'a [u8],
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

    /// A bool, if there is one.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.meta.bool(&format!("{}.{key}", self.arch))
    }

    /// A positive float, if there is one; what is 0 is none, as writers of files put it.
    pub fn positive(&self, key: &str) -> Result<Option<f32>> {
        match self.f32(key)? {
            None | Some(0.0) => Ok(None),
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            Some(x) => Err(Error::malformed(format!("{}.{key} is {x}, expected a positive number", self.arch))),
        }
    }

    /// Epsilon of a norm.
    pub fn epsilon(&self, key: &str) -> Result<f32> {
        let eps = self.f32(key)?.ok_or_else(|| self.missing(key))?;
        match eps > 0.0 && eps < 1.0 {
            true => Ok(eps),
            false => {
                let expected = "expected more than 0 and less than 1";
                Err(Error::malformed(format!("{}.{key} is {eps}, {expected}", self.arch)))
            }
        }
    }

    /// Which of `n_layer` layers attend within a window: as the file says layer by layer, or all but each of number `period`, which is the
    /// file's or the architecture's.
    pub fn windowed_layers(&self, n_layer: usize, period: u32) -> Result<Vec<bool>> {
        let name = "attention.sliding_window_pattern";
        let key = format!("{}.{name}", self.arch);
        if let Some(Value::Array(_)) = self.meta.get(&key) {
            let types = [ValueType::Bool, ValueType::U32, ValueType::I32];
            let array = self.meta.array(&key, &types)?.expect("there is one");
            let layers: Vec<bool> =
                array.values(self.file).map(|v| v.as_i128() != Some(0) && v != Value::Bool(false)).collect();
            return match layers.len() >= n_layer {
                true => Ok(layers),
                false => Err(Error::malformed(format!("{key} has {} entries, expected {n_layer}", layers.len()))),
            };
        }
        let period = self.u32(name)?.unwrap_or(period) as usize;
        Ok((0..n_layer).map(|il| period == 0 || il % period < period - 1).collect())
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.meta.get(&format!("{}.{key}", self.arch)).is_some()
    }

    /// A required number within limits, which a file may have layer by layer. [`crate::error::Kind::Unsupported`] if layers differ.
    pub fn count_of_all(&self, key: &str, n_layer: usize, min: u32, max: u32) -> Result<usize> {
        let counts = self.counts(key, n_layer, min, max)?;
        match counts.iter().find(|&&n| n != counts[0]) {
            Some(n) => Err(Error::unsupported(format!(
                "{}.{key} is {} in one layer and {n} in another: pp-run knows {} models only where it is the same",
                self.arch, counts[0], self.arch
            ))),
            None => Ok(counts[0]),
        }
    }

    /// Required numbers within limits, one for each of `n_layer` layers, or one for all. [`crate::error::Kind::Unsupported`] if a layer lacks
    /// what is counted.
    pub fn counts(&self, key: &str, n_layer: usize, min: u32, max: u32) -> Result<Vec<usize>> {
        let name = format!("{}.{key}", self.arch);
        let Some(Value::Array(_)) = self.meta.get(&name) else {
            return Ok(vec![self.count(key, min, max)?; n_layer]);
        };
        let array = self.meta.array(&name, &[ValueType::U32, ValueType::I32])?.expect("there is one");
        let number = |v: Value| {
            let n = v.as_i128().unwrap_or(-1);
            if n == 0 && min > 0 {
                let message =
                    format!("{name} is 0 in a layer: pp-run knows {} models without such layers only", self.arch);
                return Err(Error::unsupported(message));
            }
            match (i128::from(min)..=i128::from(max)).contains(&n) {
                true => Ok(n as usize),
                false => Err(Error::malformed(format!("{name} has {n}, expected {min} to {max}"))),
            }
        };
        let counts = array.values(self.file).take(n_layer).map(number).collect::<Result<Vec<usize>>>()?;
        match counts.len() == n_layer {
            true => Ok(counts),
            false => Err(Error::malformed(format!("{name} has {} entries, expected {n_layer}", counts.len()))),
        }
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
