//! Chats on disk: one file each, one JSON object in each line, appended as the chat goes and synced before it goes on.
//!
//! The first line says what the file is, which model it was, and when. Then come turns in their order, each with the tokens that it
//! became, so that the same model goes on from the very same state; `part` lines hold an answer in the making, which the `turn` of the
//! whole answer replaces; `keep` says how many of the turns before it still count; `set` notes a setting; `model` says that another model
//! goes on, for which the tokens before it mean nothing.
//!
//! Each line ends with a hash of itself, `"xxh3"` (XXH3 of the bytes before it, 64 bits). A line that was not written to its end is dropped;
//! one that was changed is an error. Lines without the hash, which somebody wrote, are taken as they are, but for tokens, which are made
//! anew from the texts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Role, Turn};
use crate::error::{Error, Kind, Result};
use crate::tokenizer::Token;

/// Version of the format.
const VERSION: u32 = 1;

/// Longest chat.
const MAX_BYTES: u64 = 64 << 20;

/// Most settings: many more than there are.
const MAX_SETTINGS: usize = 100;

/// A line of a chat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    /// The first
    Chat { version: u32, created: String, model: PathBuf, fingerprint: String },
    /// A turn that is whole
    Turn {
        role: Role,
        content: String,
        #[serde(default, skip_serializing_if = "is_default")]
        from: usize,
        #[serde(default, skip_serializing_if = "is_default")]
        tokens: Vec<Token>,
        #[serde(default, skip_serializing_if = "is_default")]
        exact: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        how: Option<How>,
    },
    /// More of the answer that comes
    Part { content: String },
    /// Only so many turns still count
    Keep { turns: usize },
    /// A setting of the chat
    Set { name: String, value: String },
    /// From here on it is a chat with this model.
    Model { model: PathBuf, fingerprint: String },
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How an answer came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct How {
    /// Seed of the sampler
    pub seed: u32,
    /// Why it ended
    pub stop: String,
    /// What was pruned, if anything
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<String>,
    /// Settings in force: `name=value`, by the flags' long names
    #[serde(default)]
    pub flags: Vec<String>,
}

/// A chat that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// Its turns; an answer that was never finished is the last
    pub turns: Vec<Turn>,
    /// Settings by name, in the order of their last change
    pub settings: Vec<(String, String)>,
    /// The model's file
    pub model: PathBuf,
    /// The model's fingerprint
    pub fingerprint: String,
    /// The last answer was never finished.
    pub unfinished: bool,
    /// Its last line was not written to its end.
    pub torn: bool,
    /// The last question, if it had no answer at all: it is not among the turns.
    pub unanswered: Option<Turn>,
    /// Somebody changed a turn by hand: its tokens may not be those of its text.
    pub by_hand: bool,
    /// Bytes up to the end of the last whole line
    good: u64,
}

/// A chat of [`list`].
#[derive(Debug)]
pub struct Listed {
    /// Its name
    pub name: String,
    /// When it was last written to
    pub modified: SystemTime,
    /// The chat, or why it cannot be read
    pub past: Result<Past>,
}

/// A chat that is kept as it goes.
#[derive(Debug)]
pub struct Saved {
    path: PathBuf,
    file: File,
    /// What the file says
    written: Vec<Turn>,
    /// What goes before the next line
    pending: Option<Line>,
    /// Bytes of whole lines
    good: u64,
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= 100 && !name.starts_with(['.', '-']) && name.chars().all(plain)
}

/// The file of a chat by its name; [`Kind::Usage`] if that is no name.
fn file_of(dir: &Path, name: &str) -> Result<PathBuf> {
    if !is_name(name) {
        return Err(Error::usage(format!(
            "'{name}' is no name for a chat: letters, digits, '-', '_' and '.', and not '-' or '.' first"
        )));
    }
    Ok(dir.join(format!("{name}.jsonl")))
}

/// Reads a chat. [`Kind::Input`] if there is none of that name, [`Kind::Malformed`] with the line if it is damaged.
pub fn read(dir: &Path, name: &str) -> Result<Past> {
    let path = file_of(dir, name)?;
    read_file(&path, &mut open(&path, false)?)
}

/// Names of all chats and when they were last written to, the last one first.
pub(super) fn names(dir: &Path) -> Result<Vec<(String, SystemTime)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::input(format!("cannot be read: {e}")).in_file(dir)),
    };
    let mut names: Vec<(String, SystemTime)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?.strip_suffix(".jsonl").filter(|n| is_name(n))?.to_owned();
            Some((name, entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH)))
        })
        .collect();
    names.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| b.0.cmp(&a.0)));
    Ok(names)
}

/// All chats, the last one written to first.
pub fn list(dir: &Path) -> Result<Vec<Listed>> {
    let chats = names(dir)?.into_iter();
    Ok(chats.map(|(name, modified)| Listed { past: read(dir, &name), name, modified }).collect())
}

/// Name of the chat that was written to last.
pub fn newest(dir: &Path) -> Result<String> {
    let none = || Error::input(format!("no chat is saved in {}", dir.display()));
    names(dir)?.into_iter().next().map(|c| c.0).ok_or_else(none)
}

/// Deletes a chat, unless another process writes to it.
pub fn delete(dir: &Path, name: &str) -> Result<()> {
    let path = file_of(dir, name)?;
    let lock = File::open(&path).ok();
    if lock.as_ref().is_some_and(|f| matches!(f.try_lock(), Err(fs::TryLockError::WouldBlock))) {
        return Err(Error::failed("is open in another pp-run: not deleted").in_file(&path));
    }
    fs::remove_file(&path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => missing(&path),
        _ => Error::io(format!("cannot be deleted: {e}")).in_file(&path),
    })
}

fn missing(path: &Path) -> Error {
    Error::input("there is no such chat: pp-run chats lists them").in_file(path)
}

/// Opens a chat's file, and nothing that a link points to.
fn open(path: &Path, write: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(write);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        options.custom_flags(flags.bits() as i32);
    }
    let file = options.open(path).map_err(|e| match e.kind() {
        ErrorKind::NotFound => missing(path),
        _ => Error::input(format!("cannot be opened: {e}")).in_file(path),
    })?;
    match file.metadata() {
        Ok(m) if m.is_file() => Ok(file),
        _ => Err(Error::input("is not a regular file").in_file(path)),
    }
}

fn read_file(path: &Path, file: &mut File) -> Result<Past> {
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io(format!("cannot be read: {e}")).in_file(path))?;
    Past::parse(&bytes).map_err(|e| e.in_file(path))
}

impl Past {
    /// What lines say. [`Kind::Malformed`] with the number of the line that is damaged.
    pub fn parse(bytes: &[u8]) -> Result<Past> {
        if bytes.len() as u64 > MAX_BYTES {
            return Err(Error::malformed(format!("is longer than {MAX_BYTES} bytes: no chat")));
        }
        let good = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let mut past: Option<Past> = None;
        let mut parts = String::new();
        for (i, line) in bytes[..good].split_inclusive(|&b| b == b'\n').enumerate() {
            let bad = |what: &str| Error::malformed(format!("line {}: {what}", i + 1));
            let (line, sealed) =
                unseal(&line[..line.len() - 1]).ok_or_else(|| bad("was changed after it was written"))?;
            let line: Line = serde_json::from_slice(&line).map_err(|e| bad(&format!("is no line of a chat: {e}")))?;
            let Some(past) = &mut past else {
                let Line::Chat { version, created: _, model, fingerprint } = line else {
                    return Err(bad("does not say what this file is"));
                };
                if version != VERSION {
                    let what = format!("this chat has format {version}, and this pp-run reads {VERSION}");
                    return Err(Error::unsupported(what));
                }
                let (turns, settings, unfinished, unanswered) = Default::default();
                let (good, torn, by_hand) = (good as u64, good < bytes.len(), false);
                past = Some(Past { turns, settings, model, fingerprint, unfinished, torn, unanswered, by_hand, good });
                continue;
            };
            match line {
                Line::Chat { .. } => return Err(bad("begins another chat")),
                Line::Part { content } => parts.push_str(&content),
                Line::Turn { role, content, from, tokens, exact, how: _ } => {
                    let after = past.turns.last().map(|t| t.message.role);
                    let fits = match role {
                        Role::System => after.is_none(),
                        Role::User => after != Some(Role::User),
                        Role::Assistant => after == Some(Role::User),
                    };
                    if !fits {
                        return Err(bad("has a turn that does not come after the one before"));
                    }
                    past.by_hand |= !sealed && !tokens.is_empty();
                    let from = if role == Role::User { from } else { 0 };
                    past.turns.push(Turn { from, tokens, exact, ..Turn::new(role, &content) });
                    parts.clear();
                }
                Line::Keep { turns } => {
                    past.turns.truncate(turns);
                    parts.clear();
                }
                Line::Set { name, value } => {
                    // Of these there are several, until they are emptied.
                    past.settings.retain(|s| s.0 != name || (name == "stop" && !value.is_empty()));
                    if past.settings.len() == MAX_SETTINGS {
                        return Err(bad("has more settings than there are"));
                    }
                    past.settings.push((name, value));
                }
                Line::Model { model, fingerprint } => {
                    if fingerprint != past.fingerprint {
                        past.turns.iter_mut().for_each(Turn::forget_tokens);
                    }
                    (past.model, past.fingerprint) = (model, fingerprint);
                }
            }
        }
        let mut past = past.ok_or_else(|| Error::malformed("is empty: no chat"))?;
        if past.turns.last().is_some_and(|t| t.message.role == Role::User) {
            match parts.is_empty() {
                // It is asked again, if at all.
                true => past.unanswered = past.turns.pop(),
                false => {
                    past.turns.push(Turn::new(Role::Assistant, &(parts + super::CUT)));
                    past.unfinished = true;
                }
            }
        }
        Ok(past)
    }

    /// What the chat is about: the first words of the user's.
    pub fn title(&self) -> &str {
        let first = self.turns.iter().find(|t| t.message.role == Role::User);
        first.and_then(|t| t.message.content.lines().find(|l| !l.trim().is_empty())).unwrap_or("(empty)").trim()
    }
}

/// Where a model is, wherever the next run starts.
fn absolute(model: &Path) -> PathBuf {
    fs::canonicalize(model).unwrap_or_else(|_| model.to_owned())
}

/// A line with its hash.
fn seal(line: &Line) -> String {
    let json = serde_json::to_string(line).expect("plain data has a JSON form");
    let open = &json[..json.len() - 1];
    format!("{open},\"xxh3\":\"{:016x}\"}}\n", xxhash_rust::xxh3::xxh3_64(open.as_bytes()))
}

/// The line without its hash, and whether it had one; `None` if that is not its hash.
fn unseal(line: &[u8]) -> Option<(Vec<u8>, bool)> {
    const MARK: &[u8] = b",\"xxh3\":\"";
    let Some(at) = line.len().checked_sub(MARK.len() + 18).filter(|&at| line[at..].starts_with(MARK)) else {
        return Some((line.to_vec(), false));
    };
    let hash = str::from_utf8(&line[at + MARK.len()..line.len() - 2]).ok()?;
    let whole = line.ends_with(b"\"}") && format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&line[..at])) == hash;
    whole.then(|| ([&line[..at], b"}"].concat(), true))
}

impl Saved {
    /// Begins a chat's file, named by the time, or `name`. [`Kind::CannotCreate`] if there cannot be one, or there is.
    pub fn create(dir: &Path, name: Option<&str>, model: &Path, fingerprint: String) -> Result<Saved> {
        let mut builder = DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let cannot = |e: std::io::Error, path: &Path| Error::new(Kind::CannotCreate, format!("{e}")).in_file(path);
        builder.create(dir).map_err(|e| cannot(e, dir))?;
        let now = jiff::Zoned::now();
        let by_time = now.strftime("%Y-%m-%d-%H%M%S").to_string();
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        for n in 1.. {
            let path = match name {
                Some(name) => file_of(dir, name)?,
                None if n == 1 => file_of(dir, &by_time)?,
                None => file_of(dir, &format!("{by_time}-{n}"))?,
            };
            let file = match options.open(&path) {
                // Another chat began in the same second.
                Err(e) if e.kind() == ErrorKind::AlreadyExists && name.is_none() && n < 1000 => continue,
                other => other.map_err(|e| cannot(e, &path))?,
            };
            // Nobody else knows of it yet.
            let _ = file.try_lock();
            let mut saved = Saved { path, file, written: Vec::new(), pending: None, good: 0 };
            let created = now.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
            let head = Line::Chat { version: VERSION, created, model: absolute(model), fingerprint };
            // What says nothing is no chat.
            saved.append(&[head]).inspect_err(|_| drop(fs::remove_file(&saved.path)))?;
            // The name must be as safe as what it names.
            let _ = File::open(dir).and_then(|d| d.sync_all());
            return Ok(saved);
        }
        unreachable!("the loop returns")
    }

    /// Goes on with a chat. `None` in place of the file if another process does so already: then it is only read.
    pub fn open(dir: &Path, name: &str) -> Result<(Option<Saved>, Past)> {
        let path = file_of(dir, name)?;
        let mut file = open(&path, true)?;
        let free = file.try_lock().is_ok();
        let past = read_file(&path, &mut file)?;
        if !free {
            return Ok((None, past));
        }
        let mut written = past.turns.clone();
        if past.unfinished {
            // It is a turn like others once it is written as one.
            written.pop();
        }
        written.extend(past.unanswered.clone());
        Ok((Some(Saved { path, file, written, pending: None, good: past.good }), past))
    }

    /// Another model goes on with the chat that was read, or the same one from another place.
    pub fn change_model(&mut self, past: &Past, model: &Path, fingerprint: &str) {
        let (model, fingerprint) = (absolute(model), fingerprint.to_owned());
        if fingerprint != past.fingerprint {
            self.written.iter_mut().for_each(Turn::forget_tokens);
        }
        if fingerprint != past.fingerprint || model != past.model {
            self.pending = Some(Line::Model { model, fingerprint });
        }
    }

    /// The chat's name.
    pub fn name(&self) -> &str {
        self.path.file_stem().and_then(|s| s.to_str()).unwrap_or_default()
    }

    /// Brings the file to these turns; `how` the last one, an answer, came about.
    pub fn sync(&mut self, turns: &[Turn], how: Option<How>) -> Result<()> {
        let same = |a: &Turn, b: &Turn| a.message == b.message && a.from == b.from && a.tokens == b.tokens;
        let common = self.written.iter().zip(turns).take_while(|(a, b)| same(a, b)).count();
        let mut lines = Vec::new();
        if common < self.written.len() {
            lines.push(Line::Keep { turns: common });
        }
        for (i, turn) in turns.iter().enumerate().skip(common) {
            lines.push(Line::Turn {
                role: turn.message.role,
                content: turn.message.content.clone(),
                from: turn.from,
                tokens: turn.tokens.clone(),
                exact: turn.exact,
                how: how.clone().filter(|_| i + 1 == turns.len()),
            });
        }
        if !lines.is_empty() {
            self.append(&lines)?;
            self.written = turns.to_vec();
        }
        Ok(())
    }

    /// Notes more of the answer that comes.
    pub fn part(&mut self, text: &str) -> Result<()> {
        self.append(&[Line::Part { content: text.to_owned() }])
    }

    /// Notes a setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        self.append(&[Line::Set { name: name.to_owned(), value: value.to_owned() }])
    }

    /// Gives the chat another name, which none has yet.
    pub fn rename(&mut self, dir: &Path, name: &str) -> Result<()> {
        let path = file_of(dir, name)?;
        let cannot = |e: std::io::Error| match e.kind() {
            ErrorKind::AlreadyExists => Error::new(Kind::CannotCreate, "there is a chat of that name").in_file(&path),
            _ => Error::new(Kind::CannotCreate, format!("{e}")).in_file(&path),
        };
        // A second name first, which takes no other chat's place.
        fs::hard_link(&self.path, &path).map_err(cannot)?;
        fs::remove_file(&self.path).inspect_err(|_| drop(fs::remove_file(&path))).map_err(cannot)?;
        self.path = path;
        Ok(())
    }

    /// Appends whole lines, or nothing.
    fn append(&mut self, lines: &[Line]) -> Result<()> {
        let text: String = self.pending.iter().chain(lines).map(seal).collect();
        if self.good + text.len() as u64 > MAX_BYTES {
            return Err(Error::io(format!("is full: no chat is longer than {MAX_BYTES} bytes")).in_file(&self.path));
        }
        // What a failed write left behind must not stay in between.
        self.cut()?;
        self.file
            .write_all(text.as_bytes())
            .inspect_err(|_| drop(self.cut()))
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io(format!("cannot be written: {e}")).in_file(&self.path))?;
        self.good += text.len() as u64;
        self.pending = None;
        Ok(())
    }

    /// Cuts off what is not a whole line.
    fn cut(&mut self) -> Result<()> {
        let cut = || {
            let length = self.file.metadata()?.len();
            if length > self.good { self.file.set_len(self.good) } else { Ok(()) }
        };
        cut().map_err(|e| Error::io(format!("cannot be written: {e}")).in_file(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: Role, content: &str, from: usize, tokens: &[Token]) -> Turn {
        Turn { from, tokens: tokens.to_vec(), exact: true, ..Turn::new(role, content) }
    }

    fn turns() -> Vec<Turn> {
        vec![
            turn(Role::System, "Be brief.", 0, &[]),
            turn(Role::User, "Hello\n\"you\" \u{1f44b}", 0, &[1, 2, 3]),
            turn(Role::Assistant, "Hi.", 0, &[4, 5]),
            turn(Role::User, "Bye", 5, &[6]),
            turn(Role::Assistant, "Bye!", 0, &[7]),
        ]
    }

    fn new(dir: &Path) -> Saved {
        Saved::create(dir, Some("a"), Path::new("/m.gguf"), "f".into()).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = new(dir.path());
        for n in 1..=5 {
            saved.sync(&turns()[..n], None).unwrap();
        }
        saved.set("temp", "0.1").unwrap();
        saved.set("top-k", "3").unwrap();
        saved.set("temp", "0.2").unwrap();
        let past = read(dir.path(), "a").unwrap();
        assert_eq!(past.turns, turns());
        assert_eq!(past.settings, [("top-k".into(), "3".into()), ("temp".into(), "0.2".into())]);
        assert_eq!((past.title(), past.unfinished), ("Hello", false));
        // Taken back, and answered otherwise.
        let mut other = turns();
        other.truncate(2);
        other.push(turn(Role::Assistant, "Ho.", 0, &[9]));
        saved.sync(&other, None).unwrap();
        assert_eq!(read(dir.path(), "a").unwrap().turns, other);
        assert_eq!(list(dir.path()).unwrap().len(), 1);
        saved.rename(dir.path(), "b").unwrap();
        saved.sync(&turns(), None).unwrap();
        assert_eq!(read(dir.path(), "b").unwrap().turns, turns());
        assert_eq!(read(dir.path(), "a").unwrap_err().kind(), Kind::Input);
        assert_eq!(new(dir.path()).rename(dir.path(), "b").unwrap_err().kind(), Kind::CannotCreate);
        for name in ["", "../x", ".x", "-x", "a/b", "a b", "a\u{1b}"] {
            assert_eq!(read(dir.path(), name).unwrap_err().kind(), Kind::Usage, "{name}");
        }
    }

    #[test]
    fn a_chat_in_use_is_only_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = new(dir.path());
        saved.sync(&turns(), None).unwrap();
        let (second, past) = Saved::open(dir.path(), "a").unwrap();
        assert!(second.is_none() && past.turns == turns());
        drop(saved);
        assert!(Saved::open(dir.path(), "a").unwrap().0.is_some());
    }

    /// A chat with everything in it.
    fn file() -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = new(dir.path());
        saved.sync(&turns(), None).unwrap();
        saved.set("temp", "0.1").unwrap();
        saved.sync(&turns()[..4], None).unwrap();
        saved.part("Well").unwrap();
        saved.part(", yes").unwrap();
        fs::read(&saved.path).unwrap()
    }

    #[test]
    fn an_end_at_any_byte_loses_no_whole_line() {
        let dir = tempfile::tempdir().unwrap();
        let whole = file();
        let path = file_of(dir.path(), "a").unwrap();
        let first = whole.iter().position(|&b| b == b'\n').unwrap();
        for n in 0..=whole.len() {
            fs::write(&path, &whole[..n]).unwrap();
            let lines = whole[..n].iter().filter(|&&b| b == b'\n').count();
            let opened = Saved::open(dir.path(), "a");
            if n <= first {
                assert_eq!(opened.unwrap_err().kind(), Kind::Malformed);
                continue;
            }
            let (saved, past) = opened.unwrap();
            // The first line, five turns, a setting, what is kept, two parts.
            assert_eq!(past.turns.len(), [0, 1, 1, 3, 3, 5, 5, 3, 5, 5][lines - 1], "{n}");
            // It goes on as if nothing had been.
            let mut saved = saved.unwrap();
            saved.sync(&turns(), None).unwrap();
            drop(saved);
            assert_eq!(read(dir.path(), "a").unwrap().turns, turns());
        }
        let past = Past::parse(&whole).unwrap();
        assert_eq!(past.turns[4].message.content, format!("Well, yes{}", crate::chat::CUT));
        assert!(past.unfinished);
    }

    #[test]
    fn what_is_too_long_to_be_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut saved = new(dir.path());
        let text = "a".repeat(MAX_BYTES as usize / 3);
        let results = [0; 3].map(|_| saved.part(&text).map_err(|e| e.kind()));
        assert_eq!(results, [Ok(()), Ok(()), Err(Kind::Io)]);
        saved.sync(&turns(), None).unwrap();
        assert_eq!(read(dir.path(), "a").unwrap().turns, turns());
    }

    #[test]
    fn a_change_of_any_bit_is_seen() {
        let whole = file();
        let good = Past::parse(&whole).unwrap();
        for i in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[i / 8] ^= 1 << (i % 8);
            match Past::parse(&bytes) {
                Err(e) => assert!(matches!(e.kind(), Kind::Malformed | Kind::Unsupported), "{e}"),
                // The last line's end is gone: it counts as not written.
                Ok(past) => assert!(i / 8 == whole.len() - 1 && past.turns[..4] == good.turns[..4], "bit {i}"),
            }
        }
    }

    #[test]
    fn what_is_no_chat_is_refused() {
        let head = "{\"type\":\"chat\",\"version\":1,\"created\":\"\",\"model\":\"m\",\"fingerprint\":\"f\"}\n";
        for (text, want) in [
            (String::new(), "is empty"),
            ("hello\n".into(), "line 1"),
            ("{\"type\":\"turn\",\"role\":\"user\",\"content\":\"x\"}\n".into(), "what this file is"),
            (format!("{head}{head}"), "begins another"),
            (format!("{head}{{\"type\":\"turn\",\"role\":\"assistant\",\"content\":\"x\"}}\n"), "does not come after"),
            (format!("{head}{{\"type\":\"turn\",\"role\":\"user\",\"content\":\"x\",\"tokens\":[1e9]}}\n"), "line 2"),
            (format!("{head}{{\"type\":\"keep\",\"turns\":-1}}\n"), "line 2"),
            (format!("{head}{}\n", "[".repeat(100_000)), "line 2"),
            (head.replace(":1,", ":2,"), "format 2"),
        ] {
            let e = Past::parse(text.as_bytes()).unwrap_err();
            assert!(e.to_string().contains(want), "{text}: {e}");
        }
        let own = format!(
            "{head}{{\"type\":\"turn\",\"role\":\"user\",\"content\":\"x\"}}\n{{\"type\":\"turn\",\"role\":\"assistant\",\"content\":\"y\"}}\n"
        );
        assert_eq!(Past::parse(own.as_bytes()).unwrap().turns.len(), 2, "a chat that somebody wrote");
    }
}
