//! Where pp-run's own files are, by the XDG Base Directory Specification, and how files are replaced.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Error, Kind, Result};

/// A function that looks up a variable of the environment.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// A variable of the process's environment; one that is empty is not set.
pub fn env(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|v| !v.is_empty())
}

/// The configuration: `$XDG_CONFIG_HOME/pp-run/config.toml`. `None`, as below, if there is no home.
pub fn config(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_CONFIG_HOME", ".config")?.join("config.toml"))
}

/// Saved chats: `$XDG_DATA_HOME/pp-run/chats`.
pub fn chats(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_DATA_HOME", ".local/share")?.join("chats"))
}

/// Single answers, with which `--continue` can go on: `$XDG_DATA_HOME/pp-run/answers`.
pub fn answers(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_DATA_HOME", ".local/share")?.join("answers"))
}

/// Models: `$XDG_DATA_HOME/pp-run/models`.
pub fn models(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_DATA_HOME", ".local/share")?.join("models"))
}

/// What was typed in chats: `$XDG_STATE_HOME/pp-run/history`.
pub fn history(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_STATE_HOME", ".local/state")?.join("history"))
}

/// Long prompts: `$XDG_CACHE_HOME/pp-run/prompts`.
pub fn prompts(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_CACHE_HOME", ".cache")?.join("prompts"))
}

/// What tells this build of the program from others: its version, and length and time of its file.
pub fn build() -> String {
    let stat = std::env::current_exe().and_then(fs::metadata);
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let time = stat.as_ref().ok().and_then(|s| s.modified().ok()).map_or(0, since);
    format!("{} {} {time}", env!("CARGO_PKG_VERSION"), stat.map_or(0, |s| s.len()))
}

/// What types of KV caches cost models, as it was measured: `$XDG_CACHE_HOME/pp-run/kv-types`.
pub fn kv_types(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_CACHE_HOME", ".cache")?.join("kv-types"))
}

fn directory(env: Env, variable: &str, default: &str) -> Option<PathBuf> {
    let set = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    Some(set(variable).or_else(|| Some(set("HOME")?.join(default)))?.join("pp-run"))
}

/// A file that is written under a temporary name, and gets its own only when it is whole: nothing half-written takes a file's place.
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl Replacement {
    /// Begins a file; `mode` is that of a new one, less the process's mask. [`Kind::CannotCreate`] if that cannot be.
    pub fn create(path: &Path, mode: u32) -> Result<Replacement> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(name);
        // A file of this name is left over if an earlier process with this number was killed. `create_new` follows no link that others made.
        let _ = fs::remove_file(&temporary);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        let file = options.open(&temporary).map_err(failed(path, Kind::CannotCreate))?;
        Ok(Replacement { path: path.to_owned(), temporary, file })
    }

    /// What is to be written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Syncs the file and gives it its name. [`Kind::Io`] or [`Kind::CannotCreate`] if that fails.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(failed(&self.path, Kind::Io))?;
        fs::rename(&self.temporary, &self.path).map_err(failed(&self.path, Kind::CannotCreate))?;
        // The file is whole by now; if its folder cannot be synced, a power failure may bring back the old one.
        #[cfg(unix)]
        if let Some(folder) = self.path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let _ = File::open(folder).and_then(|f| f.sync_all());
        }
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // There is none of this name once the file has its own.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn failed(path: &Path, kind: Kind) -> impl Fn(io::Error) -> Error {
    move |e| Error::new(kind, format!("cannot be written: {e}")).in_file(path)
}

/// Writes a whole file as a [`Replacement`].
pub fn replace_file(path: &Path, mode: u32, write: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let replacement = Replacement::create(path, mode)?;
    write(replacement.file()).map_err(failed(path, Kind::Io))?;
    replacement.finish()
}
