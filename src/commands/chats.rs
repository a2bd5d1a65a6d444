//! `pp-run chats`: what was said, and where it is kept.

use super::chat::{directory, listing};
use super::print;
use crate::chat::{Role, delete, list, read};
use crate::cli::options::ChatsOptions;
use crate::error::{Result, escape};

/// Lists chats, prints one, or deletes some.
pub fn run(options: &ChatsOptions) -> Result<()> {
    let dir = directory()?;
    match options {
        ChatsOptions::List => {
            let list = listing(&dir)?;
            if list.is_empty() {
                return print(&format!("no chat is saved in {}\n", dir.display()));
            }
            print(&list)
        }
        ChatsOptions::Show(name) => {
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
        ChatsOptions::Delete(names) => names.iter().try_for_each(|name| delete(&dir, name)),
        ChatsOptions::DeleteAll => list(&dir)?.iter().try_for_each(|chat| delete(&dir, &chat.name)),
    }
}
