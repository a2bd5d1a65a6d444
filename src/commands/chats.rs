//! `pp-run chats`: what was said, and where it is kept.

use std::path::Path;

use super::chat::{directory, listing};
use super::output::print;
use crate::chat::{Role, delete, list, read};
use crate::error::{Result, escape};

#[derive(Debug, Clone)]
pub enum Options {
    /// List them
    List,
    /// Print one
    Show(String),
    /// Delete these
    Delete(Vec<String>),
    /// Delete all
    DeleteAll,
}

/// Lists chats, prints one, or deletes some.
pub fn run(options: &Options) -> Result<()> {
    let dir = directory()?;
    match options {
        Options::List => {
            let list = listing(&dir)?;
            if list.is_empty() {
                return print(&format!("no chat is saved in {}\n", dir.display()));
            }
            print(&list)
        }
        Options::Show(name) => {
            let mut out = String::new();
            for turn in &read(&dir, name)?.turns {
                let who = match turn.message.role {
                    Role::System => "System",
                    Role::User => "User",
                    Role::Assistant => "Assistant",
                };
                let text: Vec<String> = turn.message.content.lines().map(escape).collect();
                out.push_str(&format!("{who}:\n{}\n\n", text.join("\n")));
            }
            print(&out)
        }
        Options::Delete(names) => delete_each(&dir, names.iter()),
        Options::DeleteAll => delete_each(&dir, list(&dir)?.iter().map(|chat| &chat.name)),
    }
}

/// Deletes all chats that can be deleted. The first one that cannot is the error.
fn delete_each<'a>(dir: &Path, names: impl Iterator<Item = &'a String>) -> Result<()> {
    names.map(|name| delete(dir, name)).fold(Ok(()), Result::and)
}
