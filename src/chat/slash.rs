//! The commands of a chat: their names, and what can follow them.

use crate::error::{Error, Result, nearest};

/// A command.
#[derive(Debug)]
pub struct Slash {
    /// The name, with its slash
    pub name: &'static str,
    /// The argument, as help shows it
    pub argument: &'static str,
    /// What it does
    pub help: &'static str,
    /// What can be completed after it
    pub completes: Completes,
}

/// What the argument of a command is.
#[derive(Debug, Clone, Copy)]
pub enum Completes {
    /// Free text, or nothing
    Nothing,
    /// A file
    Files,
    /// A saved chat
    Chats,
    /// A setting
    Settings,
    /// One of these
    Words(&'static [&'static str]),
}

use Completes::{Chats, Files, Nothing, Settings, Words};

/// All commands, in the order of help.
pub const SLASHES: &[Slash] = &[
    slash("/help", "", "this list", Nothing),
    slash("/exit", "", "leave (also /bye, /quit, Ctrl-D)", Nothing),
    slash("/regen", "", "another answer to the last question", Nothing),
    slash(
        "/ab",
        "NAME=VALUE",
        "answer the last question again, as it is and with another setting, or with two: dense and pruned without any; --blind asks first which is better",
        Settings,
    ),
    slash("/undo", "", "take the last question and its answer back", Nothing),
    slash("/edit", "", "change the last question in your editor, and ask that instead", Nothing),
    slash("/clear", "", "forget the conversation (also /forget)", Nothing),
    slash("/push", "", "remember this point of the conversation", Nothing),
    slash("/pop", "", "go back to the point remembered last", Nothing),
    slash("/system", "TEXT", "another system prompt; '-' for none", Nothing),
    slash(
        "/set",
        "NAME VALUE",
        "change a setting: a flag's name and value; verbose, quiet; alone: those in force",
        Settings,
    ),
    slash(
        "/prune",
        "R",
        "leave out this share of heads and channels from the next turn on; off",
        Words(&["off", "0.2", "0.4"]),
    ),
    slash(
        "/think",
        "HOW",
        "what the model thinks: show, dim, hide or off; a number: tokens that it may take, -1 for any",
        Words(&["show", "dim", "hide", "off", "auto"]),
    ),
    slash("/read", "FILE", "a text file goes with your next message; - takes it back", Files),
    slash("/glob", "PATTERN", "so do all text files of this pattern", Files),
    slash(
        "/show",
        "WHAT",
        "info, system, template, prompt, parameters, prunable",
        Words(&["info", "system", "template", "prompt", "parameters", "prunable"]),
    ),
    slash("/context", "", "what the context is full of", Nothing),
    slash("/stats", "", "tokens and speeds of this chat", Nothing),
    slash(
        "/why",
        "",
        "how the last answer came about: what was read, left out, drafted, and the time of each part",
        Nothing,
    ),
    slash("/map", "", "which heads and channels are in use, layer by layer", Nothing),
    slash("/save", "NAME", "give this chat a name", Chats),
    slash("/load", "NAME", "go on with a saved chat; alone: lists them", Chats),
];

const fn slash(name: &'static str, argument: &'static str, help: &'static str, completes: Completes) -> Slash {
    Slash { name, argument, help, completes }
}

/// Other names of commands, llama-cli's, ollama's and llamafile's among them.
const ALIASES: &[(&str, &str)] = &[
    ("/?", "/help"),
    ("/quit", "/exit"),
    ("/bye", "/exit"),
    ("/forget", "/clear"),
    ("/regenerate", "/regen"),
    ("/retry", "/regen"),
];

/// The command of a line that begins with one slash, and what follows it. [`crate::error::Kind::Usage`] with the most similar name if there
/// is no such command.
pub fn parse_slash(line: &str) -> Result<(&'static Slash, &str)> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let lower = word.to_lowercase();
    let name = ALIASES.iter().find(|a| a.0 == lower).map_or(lower.as_str(), |a| a.1);
    if let Some(slash) = SLASHES.iter().find(|s| s.name == name) {
        return Ok((slash, rest.trim()));
    }
    let names = SLASHES.iter().map(|s| s.name).chain(ALIASES.iter().map(|a| a.0));
    let hint = nearest(&lower, names).map_or_else(|| "/help lists them".to_owned(), |n| format!("did you mean '{n}'?"));
    Err(Error::usage(format!("unknown command '{word}': {hint} (// begins a message with /)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_by_any_name() {
        for (line, want) in [
            ("/help", ("/help", "")),
            (" /BYE ", ("/exit", "")),
            ("/set  temp 0.5", ("/set", "temp 0.5")),
            ("/read a b.txt", ("/read", "a b.txt")),
        ] {
            let (slash, rest) = parse_slash(line).unwrap();
            assert_eq!((slash.name, rest), want);
        }
        let e = parse_slash("/contxt").unwrap_err().to_string();
        assert!(e.contains("'/context'"), "{e}");
    }
}
