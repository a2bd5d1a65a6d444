//! Models in several files, as llama-gguf-split writes them: the first has the metadata, all have tensors.

use std::path::{Path, PathBuf};

use super::Metadata;
use crate::error::{Error, Result};

/// What the first of several files says about them.
#[derive(Debug)]
pub struct Split {
    count: usize,
    n_tensors: Option<u32>,
}

impl Split {
    /// `None` for a model in one file. [`crate::error::Kind::Malformed`] for a file that is not the first.
    pub fn read(meta: &Metadata) -> Result<Option<Split>> {
        let Some(count) = meta.u32("split.count")? else { return Ok(None) };
        let no = meta.u32("split.no")?.unwrap_or(0);
        // llama.cpp's numbers of parts have 16 bits.
        if count == 0 || count > u32::from(u16::MAX) || no >= count {
            return Err(Error::malformed(format!(
                "split.no is {no} and split.count is {count}, expected one of 1 to 65535 parts"
            )));
        }
        if no > 0 {
            return Err(Error::malformed(format!(
                "is part {} of a model in {count} files: give the first, whose name ends in -00001-of-{count:05}.gguf",
                no + 1
            )));
        }
        Ok(Some(Split { count: count as usize, n_tensors: meta.u32("split.tensors.count")? }))
    }

    /// The other files, which are found by the first one's name.
    pub fn others(&self, first: &Path) -> Result<Vec<PathBuf>> {
        let end = |no: usize| format!("-{no:05}-of-{:05}.gguf", self.count);
        if self.count == 1 {
            return Ok(Vec::new());
        }
        let name = first.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(&end(1)) else {
            return Err(Error::malformed(format!(
                "is the first of {} files, but its name does not end in {}, by which the others are found: rename it, and do not \
                 join the files",
                self.count,
                end(1)
            )));
        };
        Ok((2..=self.count).map(|no| first.with_file_name(format!("{stem}{}", end(no)))).collect())
    }

    /// Whether `other` is the metadata of part `no` of the model whose first part's is `first`.
    pub fn check(&self, no: usize, first: &Metadata, other: &Metadata) -> Result<()> {
        let (got, count) = (other.u32("split.no")?, other.u32("split.count")?);
        if (got, count) != (Some(no as u32), Some(self.count as u32)) {
            let number = |n: Option<u32>| n.map_or("missing".to_owned(), |n| n.to_string());
            return Err(Error::malformed(format!(
                "is not the part that its name says: split.no is {} and split.count is {}, expected {no} and {}",
                number(got),
                number(count),
                self.count
            )));
        }
        for key in ["general.architecture", "general.uuid", "general.name"] {
            if let (Some(mine), Some(other)) = (first.get(key), other.get(key))
                && mine != other
            {
                return Err(Error::malformed(format!("is of another model: its {key} is not the first part's")));
            }
        }
        Ok(())
    }

    /// Whether all parts together have as many tensors as the first says.
    pub fn check_total(&self, n: usize) -> Result<()> {
        match self.n_tensors {
            Some(expected) if expected as usize != n => Err(Error::malformed(format!(
                "split.tensors.count is {expected}, but the {} files have {n} tensors",
                self.count
            ))),
            _ => Ok(()),
        }
    }
}
