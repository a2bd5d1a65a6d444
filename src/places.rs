//! Where pp-run's own files are: the directories of the XDG Base Directory Specification.

use std::ffi::OsString;
use std::path::PathBuf;

/// Looks a variable of the environment up.
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
