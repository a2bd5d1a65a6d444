//! This chat's file, and messages to the user about it.

use std::path::{Path, PathBuf};

use crate::chat::{How, Listed, Past, Role, Saved, Template, Turn, exists, keep_last, list, move_to, newest};
use crate::commands::answer::Run;
use crate::commands::run::Resume;
use crate::error::{Error, Result, escape};
use crate::log::Log;
use crate::system::places;

/// A saved chat that was opened.
pub struct Opened {
    pub name: String,
    /// `None` if another process writes to it
    pub saved: Option<Saved>,
    pub past: Past,
}

/// Single answers that are kept, so that one can go on with them: enough for a while, few enough to be looked through, and to be forgotten
/// soon by who never goes on with any.
const MAX_ANSWERS: usize = 20;

/// Where chats are, and single answers.
pub struct Folders {
    pub chats: PathBuf,
    pub answers: PathBuf,
}

impl Folders {
    /// The error is of kind [`crate::error::Kind::Input`] if there can be none.
    pub fn find() -> Result<Folders> {
        let env = &places::env;
        let both = places::chats(env).zip(places::answers(env)).map(|(chats, answers)| Folders { chats, answers });
        both.ok_or_else(|| Error::input("chats have no place: neither HOME nor XDG_DATA_HOME is set"))
    }

    /// The folder that a chat is in: that of chats if it is nowhere.
    pub fn of(&self, name: &str) -> &Path {
        let is_answer = !exists(&self.chats, name) && exists(&self.answers, name);
        if is_answer { &self.answers } else { &self.chats }
    }
}

/// Opens a saved chat, or a single answer, which is a chat from then on unless nothing is to be saved.
pub fn open(resume: &Resume, no_save: bool) -> Result<Opened> {
    let folders = Folders::find()?;
    let (mut dir, mut name) = match resume {
        Resume::Last => newest(&folders.chats, &folders.answers, &std::env::current_dir().unwrap_or_default())?,
        Resume::Named(name) => (folders.of(name), name.clone()),
    };
    // Where it cannot be moved it stays.
    if dir == folders.answers
        && !no_save
        && let Ok(moved) = move_to(dir, &folders.chats, &name)
    {
        (dir, name) = (&folders.chats, moved);
    }
    let (saved, past) = Saved::open(dir, &name)?;
    Ok(Opened { name, saved, past })
}

/// Keeps a single answer; `how` it came about. That it cannot be kept is no failure of the run.
pub fn keep_answer(run: &Run, template: &Template, turns: &[Turn], how: How) {
    let Some(dir) = places::answers(&places::env).filter(|_| !run.options.no_save) else { return };
    let kept = Saved::create(&dir, None, &run.options.model.path, fingerprint(run, template))
        .and_then(|mut saved| saved.sync(turns, Some(how)));
    match kept {
        Ok(()) => keep_last(&dir, MAX_ANSWERS),
        Err(e) => run.log.trace(&format!("this answer is not kept: {e}")),
    }
}

/// The model and its template.
fn fingerprint(run: &Run, template: &Template) -> String {
    format!("{:016x}-{:016x}", run.model.gguf().fingerprint(), template.fingerprint())
}

/// The saved chats, one line each.
pub fn listing(dir: &Path) -> Result<String> {
    let mut out = String::new();
    for Listed { name, modified, past } in list(dir)? {
        let when = jiff::Timestamp::try_from(modified).unwrap_or_default().to_zoned(jiff::tz::TimeZone::system());
        let what = match past {
            Ok(past) => {
                let n = past.turns.iter().filter(|t| t.message.role == Role::User).count();
                let model = past.model.file_stem().map_or_else(String::new, |m| m.to_string_lossy().into_owned());
                let title: String = past.title().chars().take(60).collect();
                format!("{n:>3} question{} {model}: {title}", if n == 1 { " " } else { "s" })
            }
            Err(e) => format!("cannot be read: {e}"),
        };
        out.push_str(&format!("{name:<20} {}  {}\n", when.strftime("%Y-%m-%d %H:%M"), escape(&what)));
    }
    Ok(out)
}

/// This chat's file, once there is something to keep.
pub struct Keep {
    /// `None`: nothing is kept.
    dir: Option<PathBuf>,
    model: PathBuf,
    fingerprint: String,
    saved: Option<Saved>,
    /// The user was told that the chat cannot be kept.
    failed: bool,
    /// Settings that are not in the file yet
    settings: Vec<(String, String)>,
}

impl Keep {
    pub fn new(run: &Run, template: &Template) -> Keep {
        let dir = if run.options.no_save { None } else { places::chats(&places::env) };
        Keep {
            dir,
            model: run.options.model.path.clone(),
            fingerprint: fingerprint(run, template),
            saved: None,
            failed: false,
            settings: Vec::new(),
        }
    }

    /// Where chats are kept, if they are.
    pub fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The name of this chat's file, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.saved.as_ref().map(Saved::name)
    }

    /// The chat goes on in a new file, which is made when there is something to keep.
    pub fn begin(&mut self) {
        self.saved = None;
        self.settings.clear();
    }

    /// The chat goes on in the file that it was read from.
    pub fn go_on(&mut self, mut saved: Saved, past: &Past) {
        self.begin();
        if self.dir.is_some() {
            saved.change_model(past, &self.model, &self.fingerprint);
            self.saved = Some(saved);
        }
    }

    /// Writes what the file lacks of these turns. The first turn makes the file.
    pub fn sync(&mut self, turns: &[Turn], how: Option<How>, log: &Log) {
        let Some(dir) = self.dir.clone() else { return };
        if self.saved.is_none() && !turns.iter().any(|t| t.message.role == Role::User) {
            return;
        }
        let result = self.with_file(&dir, |saved| saved.sync(turns, how));
        self.heard(result, log);
    }

    /// Writes more of an answer that is not finished yet.
    pub fn part(&mut self, text: &str, log: &Log) {
        if let Some(saved) = &mut self.saved {
            let result = saved.part(text);
            self.heard(result, log);
        }
    }

    /// Notes a setting.
    pub fn set(&mut self, name: &str, value: &str, log: &Log) {
        self.settings.push((name.to_owned(), value.to_owned()));
        if let (Some(dir), true) = (self.dir.clone(), self.saved.is_some()) {
            let result = self.with_file(&dir, |_| Ok(()));
            self.heard(result, log);
        }
    }

    /// Gives the chat a name. A chat that was not kept is kept from now on.
    pub fn rename(&mut self, name: &str, turns: &[Turn]) -> Result<()> {
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => Folders::find()?.chats,
        };
        match &mut self.saved {
            Some(saved) => saved.rename(&dir, name)?,
            None => self.saved = Some(Saved::create(&dir, Some(name), &self.model, self.fingerprint.clone())?),
        }
        self.dir = Some(dir.clone());
        self.with_file(&dir, |saved| saved.sync(turns, None))
    }

    fn with_file(&mut self, dir: &Path, f: impl FnOnce(&mut Saved) -> Result<()>) -> Result<()> {
        let saved = match &mut self.saved {
            Some(saved) => saved,
            None => self.saved.insert(Saved::create(dir, None, &self.model, self.fingerprint.clone())?),
        };
        while let Some((name, value)) = self.settings.first() {
            saved.set(name, value)?;
            self.settings.remove(0);
        }
        f(saved)
    }

    /// Tells the user when the chat can no longer be kept, and when it can again; the chat goes on.
    fn heard(&mut self, result: Result<()>, log: &Log) {
        match result {
            Ok(()) if self.failed => {
                self.failed = false;
                log.note("this chat is kept again, all of it");
            }
            Err(e) if !self.failed => {
                self.failed = true;
                log.error(&format!("this chat is not kept at present: {e}"));
            }
            _ => {}
        }
    }
}
