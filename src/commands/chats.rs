//! `pp-run chats`: what was said, and where it is kept.

use std::path::Path;

use super::chat::{Folders, listing};
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
    let folders = Folders::find()?;
    match options {
        Options::List => {
            let (chats, answers) = (listing(&folders.chats)?, listing(&folders.answers)?);
            match (chats.is_empty(), answers.is_empty()) {
                (true, true) => print(&format!("no chat is saved in {}\n", folders.chats.display())),
                (false, true) => print(&chats),
                (_, false) => print(&format!("{chats}answers, the last of which are kept:\n{answers}")),
            }
        }
        Options::Show(name) => {
            let mut out = String::new();
            for turn in &read(folders.of(name), name)?.turns {
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
        Options::Delete(names) => delete_each(names.iter().map(|name| (folders.of(name), name.clone()))),
        Options::DeleteAll => {
            let all = |dir| list(dir).map(|all| all.into_iter().map(move |chat| (dir, chat.name)));
            delete_each(all(&folders.chats)?.chain(all(&folders.answers)?))
        }
    }
}

/// Deletes all chats that can be deleted. The first one that cannot is the error.
fn delete_each<'a>(names: impl Iterator<Item = (&'a Path, String)>) -> Result<()> {
    names.map(|(dir, name)| delete(dir, &name)).fold(Ok(()), Result::and)
}
