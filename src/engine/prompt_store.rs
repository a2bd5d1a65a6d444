//! A folder of prompt caches ([`super::prompt_cache`]) that are kept without being asked for: found by the tokens that they begin with, the
//! least recently used out first.
//!
//! A file's name says what the bits of its cells depend on ([`Session::identity`]) and which tokens it has. Other processes may use the
//! folder at the same time: a file is whole once it has its name, and one that has gone meanwhile is as one that never was.

use std::fs::{self, DirBuilder, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use xxhash_rust::xxh3::Xxh3;

use super::prompt_cache::Found;
use super::session::Session;
use crate::error::{Error, Kind, Result};
use crate::tokenizer::Token;

/// Tokens that are worth a file: so many more than what was found must have been read.
pub const LEAST: usize = 256;

/// Files in the folder at most, as each is looked into.
const MAX_FILES: usize = 500;

/// End of the names of files.
const KEPT: &str = ".kv";

/// A folder, and the bytes that its files may take.
#[derive(Debug, Clone)]
pub struct Store {
    /// The folder, made when it is needed
    pub dir: PathBuf,
    /// Bytes
    pub limit: u64,
}

/// A file of a store.
#[derive(Debug)]
pub struct Stored {
    /// Where it is
    pub path: PathBuf,
    /// When it was last used
    pub used: SystemTime,
    /// How long it is
    pub n_bytes: u64,
}

/// What a prompt took over.
#[derive(Debug, Default)]
pub struct Taken {
    /// Tokens; the session has them
    pub n: usize,
    /// Why a file that had some was deleted
    pub damaged: Option<String>,
    /// The file, if all that it has was taken
    whole: Option<PathBuf>,
}

/// The files of a folder, the last used first. What is on its way to become one counts, too: a process that was killed leaves it behind.
pub fn list(dir: &Path) -> Vec<Stored> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let stored = entries.filter_map(|entry| {
        let (path, stat) = (entry.path(), entry.metadata().ok().filter(fs::Metadata::is_file)?);
        let is_ours = |name: &str| name.ends_with(KEPT) || (name.contains(KEPT) && name.ends_with(".tmp"));
        is_ours(path.file_name()?.to_str()?).then_some(())?;
        Some(Stored { path, used: stat.modified().unwrap_or(SystemTime::UNIX_EPOCH), n_bytes: stat.len() })
    });
    let mut stored: Vec<Stored> = stored.collect();
    stored.sort_by(|a, b| b.used.cmp(&a.used).then_with(|| a.path.cmp(&b.path)));
    stored
}

impl Store {
    /// Makes an empty session hold as much of a prompt as there is. What is damaged is deleted.
    pub fn take(&self, session: &mut Session, prompt: &[Token]) -> Taken {
        let name = format!("{:016x}-", session.identity());
        let is_of_session =
            |s: &Stored| s.path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(name.as_bytes()));
        let has = |stored: Stored| {
            let n = session.in_common(&session.tokens_in(&stored.path, prompt.len())?, prompt);
            (n >= LEAST).then_some((n, stored))
        };
        let mut found: Vec<(usize, Stored)> =
            list(&self.dir).into_iter().filter(is_of_session).filter_map(has).collect();
        found.sort_by_key(|f| std::cmp::Reverse(f.0));
        let mut damaged = None;
        for (n, Stored { path, .. }) in found {
            match session.restore_beginning(&path, prompt) {
                Ok(Found::Restored) => {
                    // A folder that cannot be written is still good to read.
                    let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                    let is_whole = session.tokens_in(&path, n + 1).is_some_and(|tokens| tokens.len() == n);
                    return Taken { n, damaged, whole: is_whole.then_some(path) };
                }
                Ok(Found::Unusable(why)) => {
                    let _ = fs::remove_file(&path);
                    damaged = Some(format!("{}: {why}: deleted", path.display()));
                }
                Ok(Found::Nothing) | Err(_) => {}
            }
        }
        Taken { damaged, ..Taken::default() }
    }

    /// Keeps what a session has read of a prompt after it had `taken` some of it, if that is worth it. Returns the number of tokens that
    /// were written. [`Kind::CannotCreate`] and [`Kind::Io`] leave the folder as good as it was.
    pub fn keep(&self, session: &Session, prompt: &[Token], taken: &Taken) -> Result<Option<usize>> {
        let n = session.left_to_others(prompt);
        let n_bytes = session.state_bytes(n);
        if n < taken.n + LEAST || n_bytes > self.limit {
            return Ok(None);
        }
        let mut folder = DirBuilder::new();
        folder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
        folder.create(&self.dir).map_err(|e| Error::new(Kind::CannotCreate, format!("{e}")).in_file(&self.dir))?;
        let mut hash = Xxh3::new();
        prompt[..n].iter().for_each(|token| hash.update(&token.to_le_bytes()));
        let path = self.dir.join(format!("{:016x}-{:016x}{KEPT}", session.identity(), hash.digest()));
        self.make_room(n_bytes);
        session.save_state(&path, n)?;
        // It begins with all that the other has.
        if let Some(old) = taken.whole.as_ref().filter(|old| **old != path) {
            let _ = fs::remove_file(old);
        }
        Ok(Some(n))
    }

    /// Deletes the least recently used files, until one more of `n_bytes` fits.
    fn make_room(&self, n_bytes: u64) {
        let mut sum = n_bytes;
        for (i, Stored { path, n_bytes, .. }) in list(&self.dir).into_iter().enumerate() {
            sum = sum.saturating_add(n_bytes);
            if sum > self.limit || i + 1 >= MAX_FILES {
                // Another process may have deleted it.
                let _ = fs::remove_file(path);
            }
        }
    }
}
