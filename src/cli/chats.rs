//! Flags of `pp-run chats`, and the options that they become.

use clap::Args;

use crate::commands::chats::Options;

#[derive(Debug, Args)]
pub struct ChatsArgs {
    /// Print this chat
    #[arg(long, value_name = "CHAT")]
    pub show: Option<String>,
    /// Delete these chats
    #[arg(long, value_name = "CHAT", num_args = 1.., conflicts_with_all = ["show", "delete_all"])]
    pub delete: Vec<String>,
    /// Delete all chats
    #[arg(long, conflicts_with = "show")]
    pub delete_all: bool,
}

pub fn options(a: ChatsArgs) -> Options {
    match (a.show, a.delete_all) {
        (Some(name), _) => Options::Show(name),
        (None, true) => Options::DeleteAll,
        (None, false) if a.delete.is_empty() => Options::List,
        (None, false) => Options::Delete(a.delete),
    }
}
