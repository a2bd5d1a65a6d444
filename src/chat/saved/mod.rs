//! Chats on disk: one file each, one JSON object in each line, appended as the chat goes and synced before it goes on.

mod line;
mod past;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::turn::Turn;
use crate::error::{Error, Kind, Result};
pub use line::How;
use line::{Line, VERSION, seal, unseal};
use past::MAX_BYTES;
pub use past::Past;

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
            "'{name}' is no name for a chat: letters, digits, '-', '_' and '.', and not '-' or '.' first (a question goes \
             behind -p)"
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

/// The chat or answer that was written to last of those that were begun in a folder, or else the last chat of all: its directory and its
/// name.
pub fn newest<'d>(chats: &'d Path, answers: &'d Path, folder: &Path) -> Result<(&'d Path, String)> {
    let mut all = Vec::new();
    for dir in [chats, answers] {
        all.extend(names(dir)?.into_iter().map(|(name, modified)| (modified, dir, name)));
    }
    all.sort_by_key(|chat| std::cmp::Reverse(chat.0));
    let folder = as_text(folder);
    let of_folder = all.iter().find(|(_, dir, name)| begun_in(dir, name).as_ref() == Some(&folder));
    let last = of_folder.or_else(|| all.iter().find(|c| c.1 == chats));
    let none = || Error::input(format!("no chat is saved in {}", chats.display()));
    last.map(|(_, dir, name)| (*dir, name.clone())).ok_or_else(none)
}

/// The folder in which a chat was begun, if it says that; of its file no more than the first line is read.
fn begun_in(dir: &Path, name: &str) -> Option<PathBuf> {
    /// A line with two paths.
    const MAX_HEAD: u64 = 64 << 10;
    let mut line = Vec::new();
    let file = open(&file_of(dir, name).ok()?, false).ok()?;
    BufReader::new(file.take(MAX_HEAD)).read_until(b'\n', &mut line).ok()?;
    let (line, _) = unseal(line.strip_suffix(b"\n")?)?;
    match serde_json::from_slice(&line).ok()? {
        Line::Chat { folder, .. } if !folder.as_os_str().is_empty() => Some(folder),
        _ => None,
    }
}

/// Whether there is a chat of this name.
pub fn exists(dir: &Path, name: &str) -> bool {
    file_of(dir, name).is_ok_and(|path| fs::symlink_metadata(path).is_ok())
}

/// Moves a chat to another directory, under its name or, if there is one of that name, another. Returns the name.
pub fn move_to(from: &Path, to: &Path, name: &str) -> Result<String> {
    let old = file_of(from, name)?;
    make_private(to)?;
    for n in 1..1000 {
        let new = if n == 1 { name.to_owned() } else { format!("{name}-{n}") };
        let path = file_of(to, &new)?;
        match fs::hard_link(&old, &path) {
            Ok(()) => {
                fs::remove_file(&old).map_err(|e| cannot_create(e, &old))?;
                return Ok(new);
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(cannot_create(e, &path)),
        }
    }
    Err(Error::new(Kind::CannotCreate, "there are a thousand chats of that name").in_file(&old))
}

/// Deletes all but the last `n` chats that were written to, as far as that goes.
pub fn keep_last(dir: &Path, n: usize) {
    for (name, _) in names(dir).unwrap_or_default().into_iter().skip(n) {
        let _ = delete(dir, &name);
    }
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

/// Where a model is, wherever the next run starts.
fn absolute(model: &Path) -> PathBuf {
    as_text(&fs::canonicalize(model).unwrap_or_else(|_| model.to_owned()))
}

/// A path as a line can have it, which is text: one that is none is not found again.
fn as_text(path: &Path) -> PathBuf {
    path.to_string_lossy().into_owned().into()
}

fn cannot_create(e: std::io::Error, path: &Path) -> Error {
    Error::new(Kind::CannotCreate, format!("{e}")).in_file(path)
}

/// Makes a directory that only its owner can look into.
fn make_private(dir: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(|e| cannot_create(e, dir))
}

impl Saved {
    /// Begins a chat's file, named by the time, or `name`. [`Kind::CannotCreate`] if there cannot be one, or there is.
    pub fn create(dir: &Path, name: Option<&str>, model: &Path, fingerprint: String) -> Result<Saved> {
        make_private(dir)?;
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
                other => other.map_err(|e| cannot_create(e, &path))?,
            };
            // Nobody else knows of it yet.
            let _ = file.try_lock();
            let mut saved = Saved { path, file, written: Vec::new(), pending: None, good: 0 };
            let created = now.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
            let folder = as_text(&std::env::current_dir().unwrap_or_default());
            let head = Line::Chat { version: VERSION, created, model: absolute(model), fingerprint, folder };
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
    use crate::chat::turn::{CUT, Role};
    use crate::tokenizer::Token;

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
        assert_eq!(past.turns[4].message.content, format!("Well, yes{}", CUT));
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
}
