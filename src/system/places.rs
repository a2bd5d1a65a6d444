//! Where pp-run's own files are, by the XDG Base Directory Specification, and how files are replaced.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

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

/// Models: `$XDG_DATA_HOME/pp-run/models`.
pub fn models(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_DATA_HOME", ".local/share")?.join("models"))
}

/// What was typed in chats: `$XDG_STATE_HOME/pp-run/history`.
pub fn history(env: Env) -> Option<PathBuf> {
    Some(directory(env, "XDG_STATE_HOME", ".local/state")?.join("history"))
}

fn directory(env: Env, variable: &str, default: &str) -> Option<PathBuf> {
    let set = |name: &str| env(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    Some(set(variable).or_else(|| Some(set("HOME")?.join(default)))?.join("pp-run"))
}

/// Writes a file under a temporary name, syncs it, and only then gives it its own: nothing half-written takes a file's place. `mode` is that
/// of a new file, less the process's mask. [`Kind::CannotCreate`], or [`Kind::Io`] if it fails in between.
pub fn replace_file(path: &Path, mode: u32, write: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&name);
    let failed = |kind: Kind| move |e: io::Error| Error::new(kind, format!("cannot be written: {e}")).in_file(path);
    let replace = || -> Result<()> {
        // A file of this name is left over if an earlier process with this number was killed. `create_new` follows no link that others made.
        let _ = fs::remove_file(temporary);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        let file = options.open(temporary).map_err(failed(Kind::CannotCreate))?;
        write(&file).and_then(|()| file.sync_all()).map_err(failed(Kind::Io))?;
        fs::rename(temporary, path).map_err(failed(Kind::CannotCreate))
    };
    replace().inspect_err(|_| drop(fs::remove_file(temporary)))?;
    // The file is whole by now; if its folder cannot be synced, a power failure may bring back the old one.
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
    Ok(())
}
