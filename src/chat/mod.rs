//! Chats: turns and the tokens that they become, templates, the line editor, how answers look, chats on disk.

mod conversation;
mod editor;
mod jinja;
mod render;
mod saved;
mod slash;
pub mod template;
pub mod terminal;
mod turn;
mod watch;

pub use conversation::Conversation;
pub use editor::{Around, Editor, Input};
pub use render::{Reasoning, Render};
pub use saved::{How, Listed, Past, Saved, delete, exists, keep_last, list, move_to, newest, read};
pub use slash::{SLASHES, parse_slash};
pub use template::Template;
pub use terminal::{Hush, Style, width};
pub use turn::{Message, Role, Turn};
pub use watch::{Watch, ending_signals};
