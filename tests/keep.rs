//! Saved chats, by the program itself: going on with one, files that are no chats, two processes on one, nowhere to save, and an end at any
//! moment. Cases R40-R45 of the project's list, for chats.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::forge::Forge;
use common::term::Term;
use common::{apart, check, finished, pp_run, shim, smollm2, started};
use pp_run::chat::template::Source as TemplateSource;
use pp_run::chat::{Past, Role, Template, read};
use pp_run::gguf::Gguf;

/// A data home, and a tiny model next to it.
struct Home {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model.gguf");
        Forge::smallest().write(&model);
        let home = Home { dir, model };
        fs::create_dir_all(home.chats()).unwrap();
        home
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn chats(&self) -> PathBuf {
        self.data().join("pp-run/chats")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.chats().join(format!("{name}.jsonl"))
    }

    fn program(&self) -> Command {
        let mut command = pp_run();
        command.env("PP_ARG_THREADS", "1").env("XDG_DATA_HOME", self.data()).stdin(Stdio::null());
        command
    }

    /// `pp-run --continue` with these arguments.
    fn go_on(&self, args: &[&str]) -> Command {
        let mut command = self.program();
        command.args(["--chat-template", "chatml", "-n", "4", "--temp", "0", "--continue"]).args(args);
        command
    }

    /// One more turn of a chat.
    #[track_caller]
    fn turn(&self, name: &str, text: &str) -> Output {
        finished(started(&mut self.go_on(&[name, "-p", text])))
    }

    /// The first line of a chat with the tiny model.
    fn head(&self) -> String {
        head(&self.model)
    }

    /// A chat that somebody wrote.
    fn write(&self, name: &str, lines: &[&str]) -> PathBuf {
        let path = self.file(name);
        fs::write(&path, format!("{}{}", self.head(), lines.iter().map(|l| format!("{l}\n")).collect::<String>()))
            .unwrap();
        path
    }

    #[track_caller]
    fn past(&self, name: &str) -> Past {
        read(&self.chats(), name).unwrap()
    }

    /// Who said what.
    #[track_caller]
    fn said(&self, name: &str) -> Vec<(Role, String)> {
        self.past(name).turns.into_iter().map(|t| (t.message.role, t.message.content)).collect()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.chats()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn head(model: &Path) -> String {
    let gguf = Gguf::open(model).unwrap();
    let source = TemplateSource::TextOrName("chatml".into());
    let template = Template::load(Some(&source), &gguf, None, None);
    let fingerprint = format!("{:016x}-{:016x}", gguf.fingerprint(), template.unwrap().unwrap().fingerprint());
    let model = model.display();
    format!(
        "{{\"type\":\"chat\",\"version\":1,\"created\":\"\",\"model\":\"{model}\",\"fingerprint\":\"{fingerprint}\"}}\n"
    )
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How many tokens a turn read, and how many of it it found in a cache.
#[track_caller]
fn numbers(output: &Output) -> (usize, usize) {
    let text = stderr(output);
    let line = text.lines().find(|l| l.starts_with("read ")).unwrap_or_else(|| panic!("no numbers: {text}"));
    let number = |word: &str| {
        let before = line.split(word).next().filter(|b| b.len() < line.len())?;
        before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let read = line["read ".len()..].split(' ').next().unwrap().parse().unwrap();
    (read, number(" cached").unwrap_or(0))
}

#[test]
fn a_chat_goes_on() {
    let home = Home::new();
    home.write("a", &[]);
    let cache = home.dir.path().join("cache");
    let mut timeline = 0;
    let mut earlier: Vec<(Role, String)> = Vec::new();
    for (i, text) in ["hello", "and then", "the end"].into_iter().enumerate() {
        let mut command = home.go_on(&["a", "-p", text, "--prompt-cache-all", "--prompt-cache"]);
        let output = finished(started(command.arg(&cache)));
        check(text, &output, 0, &format!("going on with a: {i} question"));
        assert!(!stderr(&output).contains("read anew"), "{}", stderr(&output));
        // All of the earlier turns are in the prompt, and they are the very tokens that the session had.
        let (read, cached) = numbers(&output);
        assert_eq!(cached > 0, i > 0, "{text}");
        assert!(read + cached > timeline + text.len(), "{text}: {read} + {cached} tokens after {timeline}");
        if i > 0 {
            assert!(cached + 1 >= timeline, "{text}: {cached} of {timeline}");
        }
        timeline = read + cached + 4;
        let said = home.said("a");
        assert_eq!((said.len(), &said[..2 * i]), (2 * i + 2, &earlier[..]), "{text}");
        assert_eq!(said[2 * i], (Role::User, text.to_owned()));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), said[2 * i + 1].1.trim_end(), "{text}");
        earlier = said;
    }
    let past = home.past("a");
    let own: usize = past.turns.iter().map(|t| t.tokens.len()).sum();
    assert!(own >= timeline, "{own} tokens in the file, {timeline} in the context");
    let text = fs::read_to_string(home.file("a")).unwrap();
    assert!(text.starts_with(&home.head()), "what was there is there");
    assert_eq!(text.lines().count(), 7, "{text}");
    // Without a name it is the last one.
    home.write("b", &[]);
    assert_eq!(home.turn("b", "x").status.code(), Some(0));
    let output = finished(started(&mut home.go_on(&["-p", "again"])));
    check("the last", &output, 0, "going on with b: 1 question");
    assert_eq!(home.said("a"), earlier);
    // The text may come from stdin.
    let mut child = started(home.go_on(&["a"]).stdin(Stdio::piped()));
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"from a pipe\n").unwrap();
    check("stdin", &finished(child), 0, "3 questions");
    assert_eq!(home.said("a")[6], (Role::User, "from a pipe".into()));
    check("no prompt", &finished(started(&mut home.go_on(&["a"]))), 2, "no prompt");
}

const USER: &str = r#"{"type":"turn","role":"user","content":"one"}"#;
const ANSWER: &str = r#"{"type":"turn","role":"assistant","content":"two"}"#;

#[test]
fn what_is_no_chat_is_left_as_it_is() {
    let home = Home::new();
    check("none", &finished(started(&mut home.go_on(&["-p", "x"]))), 66, "no chat is saved");
    check("unknown", &home.turn("nobody", "x"), 66, "there is no such chat");
    for name in ["../a", "a/b", ".a", "a b", "/etc/passwd", "a\u{1b}[2J"] {
        check(name, &home.turn(name, "x"), 2, "is no name for a chat");
    }
    let long = "a".repeat(101);
    check("long", &home.turn(&long, "x"), 2, "is no name for a chat");
    assert_eq!(home.names(), [""; 0]);

    let good = home.write("a", &[USER, ANSWER]);
    assert_eq!(home.turn("a", "three").status.code(), Some(0));
    let good = fs::read(good).unwrap();
    let line = |bytes: &[u8], n: usize| bytes.split_inclusive(|&b| b == b'\n').take(n).map(<[u8]>::len).sum::<usize>();
    let mut changed = good.clone();
    let at = line(&good, 3) + 40;
    changed[at] ^= 1;
    let mut cut = good.clone();
    cut.drain(line(&good, 3)..line(&good, 3) + 5);
    let long: Vec<u8> = (0..70_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let head = home.head();
    let cases: [(&str, Vec<u8>, i32, &str); 10] = [
        ("changed", changed, 65, "line 4: was changed"),
        ("cut", cut, 65, "line 4: was changed"),
        ("empty", Vec::new(), 65, "is empty"),
        ("binary", long[..100_000].to_vec(), 65, "line 1"),
        ("large binary", long, 65, "is longer than"),
        ("zeros", vec![0; 1000], 65, "is empty"),
        ("version", head.replace("\"version\":1", "\"version\":2").into(), 69, "format 2"),
        ("twice", format!("{head}{head}").into(), 65, "line 2: begins another chat"),
        ("order", format!("{head}{ANSWER}\n").into(), 65, "line 2: has a turn"),
        ("deep", format!("{head}{}\n", "[".repeat(1_000_000)).into(), 65, "line 2: is no line"),
    ];
    for (id, bytes, code, part) in cases {
        let path = home.file("b");
        fs::write(&path, &bytes).unwrap();
        check(id, &home.turn("b", "x"), code, part);
        assert!(fs::read(&path).unwrap() == bytes, "{id}: as it was");
    }
    fs::remove_file(home.file("b")).unwrap();

    let target = home.dir.path().join("target");
    type Make<'a> = &'a dyn Fn(&Path);
    let kinds: [(&str, Make, i32); 5] = [
        (
            "symlink",
            &|path| {
                fs::write(&target, &good).unwrap();
                symlink(&target, path).unwrap();
            },
            66,
        ),
        ("dangling", &|path| symlink("/nonexistent/x", path).unwrap(), 66),
        ("directory", &|path| fs::create_dir(path).unwrap(), 66),
        ("fifo", &|path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success()), 66),
        ("sparse", &|path| File::create(path).unwrap().set_len(1 << 30).unwrap(), 65),
    ];
    for (id, make, code) in kinds {
        let path = home.file("c");
        make(&path);
        check(id, &home.turn("c", "x"), code, "c.jsonl: ");
        // The list has it as what it is, and the others too.
        let listed = finished(started(home.program().arg("chats")));
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(
            text.contains("c  ") && text.contains("cannot be read") && text.contains("2 questions"),
            "{id}: {text}"
        );
        match id {
            "directory" => fs::remove_dir(&path).unwrap(),
            _ => fs::remove_file(&path).unwrap(),
        }
    }
    assert!(fs::read(&target).unwrap() == good, "what the link pointed to");
    assert!(fs::read(home.file("a")).unwrap() == good);
}

#[test]
fn a_line_that_was_not_finished_is_dropped() {
    let home = Home::new();
    let path = home.write("a", &[USER, ANSWER]);
    assert_eq!(home.turn("a", "three").status.code(), Some(0));
    let good = fs::read(&path).unwrap();
    let said = home.said("a");
    for torn in ["{", r#"{"type":"turn","role":"user","content":"half a questio"#, "\0\0\0\0\0\0\0\0"] {
        fs::write(&path, [&good, torn.as_bytes()].concat()).unwrap();
        let output = home.turn("a", "four");
        check(torn, &output, 0, "going on with a: 2 questions");
        check(torn, &output, 0, "was not written to its end");
        let after = fs::read(&path).unwrap();
        assert!(after.starts_with(&good) && !String::from_utf8_lossy(&after).contains("questio\""), "{torn}");
        assert_eq!(home.said("a")[..4], said, "{torn}");
        assert_eq!(home.said("a").len(), 6, "{torn}");
    }
    // A question that had no answer is not there; the beginning of an answer is.
    home.write("b", &[USER, ANSWER, USER]);
    check("no answer", &home.turn("b", "x"), 0, "1 question");
    let said = home.said("b");
    assert_eq!((said.len(), &said[2].1[..]), (4, "x"));
    home.write(
        "c",
        &[USER, ANSWER, USER, r#"{"type":"part","content":"Well"}"#, r#"{"type":"part","content":", no"}"#],
    );
    check("part", &home.turn("c", "x"), 0, "the last answer was not finished");
    let said = home.said("c");
    assert_eq!((said.len(), said[3].1.starts_with("Well, no\n[")), (6, true), "{said:?}");
    check("part", &home.turn("c", "x"), 0, "3 questions");
}

#[test]
fn another_model_reads_what_was_said() {
    let home = Home::new();
    home.write("a", &[]);
    assert_eq!(home.turn("a", "hello").status.code(), Some(0));
    let other = home.dir.path().join("other.gguf");
    Forge { seed: 2, ..Forge::smallest() }.write(&other);
    let other = other.to_str().unwrap();
    let output = finished(started(&mut home.go_on(&["a", "-m", other, "-p", "you?"])));
    check("other", &output, 0, "what was said is read anew");
    assert_eq!(home.said("a").len(), 4);
    // From now on it is a chat with that one, and the first one's tokens are not taken for its own.
    let output = home.turn("a", "again");
    check("its own", &output, 0, "2 questions");
    assert!(!stderr(&output).contains("read anew"), "{}", stderr(&output));
    assert_eq!(home.past("a").model, fs::canonicalize(other).unwrap());
    let first = home.model.to_str().unwrap();
    check("back", &finished(started(&mut home.go_on(&["a", "-m", first, "-p", "x"]))), 0, "what was said is read anew");
    assert_eq!(home.said("a").len(), 8);
    // The model is gone.
    home.write("b", &[USER, ANSWER]);
    fs::remove_file(&home.model).unwrap();
    check("gone", &home.turn("b", "x"), 66, "model.gguf");
}

#[test]
fn lines_that_somebody_wrote() {
    let home = Home::new();
    let user = |rest: &str| format!(r#"{{"type":"turn","role":"user","content":"one"{rest}}}"#);
    let answer = |rest: &str| format!(r#"{{"type":"turn","role":"assistant","content":"two"{rest}}}"#);
    let many = |n: usize| format!(r#","tokens":[{}]"#, vec!["65"; n].join(","));
    let rows = [
        ("out of the vocabulary", vec![user(r#","tokens":[300,5]"#), answer("")], 0, "1 question"),
        ("negative", vec![user(r#","tokens":[-1]"#), answer("")], 0, "1 question"),
        ("the least", vec![user(r#","tokens":[-2147483648]"#), answer(r#","tokens":[2147483647]"#)], 0, "1 question"),
        ("no tokens", vec![user(r#","tokens":[]"#), answer(r#","tokens":[70]"#)], 0, "1 question"),
        ("from beyond", vec![user(r#","from":18446744073709551615,"tokens":[66,67]"#), answer("")], 0, "1 question"),
        (
            "from beyond",
            vec![user(r#","tokens":[66,67]"#), answer(""), user(r#","from":99,"tokens":[68]"#), answer("")],
            0,
            "2",
        ),
        ("too large", vec![user(r#","from":18446744073709551616"#)], 65, "line 2"),
        ("not exact", vec![user(r#","tokens":[66,67]"#), answer(r#","tokens":[68],"exact":true"#)], 0, "1 question"),
        ("longer than the context", vec![user(&many(3000)), answer("")], 0, "1 question"),
        ("empty texts", vec![r#"{"type":"turn","role":"user","content":""}"#.into(), answer("")], 0, "1 question"),
        (
            "marks",
            vec![user("").replace("one", "\u{f8f0}0\u{f8f1} <s>"), answer("").replace("two", "</s>")],
            0,
            "1 question",
        ),
        ("keeps more", vec![user(""), answer(""), r#"{"type":"keep","turns":999999999}"#.into()], 0, "1 question"),
        ("keeps none", vec![user(""), answer(""), r#"{"type":"keep","turns":0}"#.into()], 0, "0 questions"),
        (
            "a setting",
            vec![r#"{"type":"set","name":"min-p","value":"abc"}"#.into()],
            0,
            "this chat's min-p abc is ignored",
        ),
        ("no setting", vec![r#"{"type":"set","name":"nonesuch","value":"1"}"#.into()], 0, "nonesuch 1 is ignored"),
        ("a flag", vec![r#"{"type":"set","name":"model","value":"/x"}"#.into()], 0, "model /x is ignored"),
        ("an escape", vec![r#"{"type":"set","name":"top-k","value":"\u001b[2J"}"#.into()], 0, "\\x1b[2J is ignored"),
        (
            "set, but nothing to do it with",
            vec![
                r#"{"type":"set","name":"prune","value":"0.5"}"#.into(),
                r#"{"type":"set","name":"prune-method","value":"flap"}"#.into(),
            ],
            0,
            "what was set in this chat is ignored",
        ),
        ("set", vec![r#"{"type":"set","name":"top-k","value":"3"}"#.into()], 0, "as set in this chat: top-k 3"),
        ("pruned", vec![r#"{"type":"set","name":"prune","value":"2"}"#.into()], 0, "prune 2 is ignored"),
        ("unknown key", vec![user(r#","more":1"#)], 65, "line 2"),
    ];
    for (id, lines, code, part) in rows {
        let path = home.write("a", &lines.iter().map(String::as_str).collect::<Vec<_>>());
        let before = fs::read(&path).unwrap();
        let output = home.turn("a", "three");
        check(id, &output, code, part);
        if code != 0 {
            assert!(fs::read(&path).unwrap() == before, "{id}: as it was");
            continue;
        }
        assert!(!stderr(&output).contains('\u{1b}'), "{id}");
        let said = home.said("a");
        assert_eq!(said[said.len() - 2].1, "three", "{id}");
        assert_eq!(home.turn("a", "four").status.code(), Some(0), "{id}, once more");
        assert_eq!(home.said("a").len(), said.len() + 2, "{id}");
    }
}

/// As long as a file may be, which must not take for ever.
#[test]
fn very_long_chats() {
    let home = Home::new();
    let fill = |line: &str, n: usize| vec![line.to_owned(); n];
    let pairs = |n: usize, user: &str| vec![format!("{user}\n{ANSWER}"); n];
    let tokens =
        format!(r#"{{"type":"turn","role":"user","content":"one","tokens":[{}]}}"#, vec!["65"; 1000].join(","));
    let rows = [
        ("many turns", pairs(200_000, USER)),
        ("many turns with tokens", pairs(150_000, r#"{"type":"turn","role":"user","content":"a","tokens":[70]}"#)),
        ("many special tokens", pairs(150_000, r#"{"type":"turn","role":"user","content":"<s>"}"#)),
        ("many tokens", pairs(12_000, &tokens)),
        ("many settings", fill(r#"{"type":"set","name":"temp","value":"1"}"#, 500_000)),
        (
            "settings that are none",
            (0..500_000).map(|i| format!(r#"{{"type":"set","name":"x{i}","value":"1"}}"#)).collect(),
        ),
        ("a long text", vec![USER.replace("one", &"a ".repeat(20_000_000)), ANSWER.into()]),
        ("a long text that is a title", vec![USER.replace("one", &"a".repeat(40_000_000)), ANSWER.into()]),
        ("many parts", [vec![USER.to_owned()], fill(r#"{"type":"part","content":"a"}"#, 500_000)].concat()),
    ];
    for (id, lines) in rows {
        let path = home.file("a");
        fs::write(&path, format!("{}{}\n", home.head(), lines.join("\n"))).unwrap();
        assert!(fs::metadata(&path).unwrap().len() < 64 << 20, "{id}");
        let whole = fs::read(&path).unwrap();
        for full in ["stop", "shift", "summarise"] {
            fs::write(&path, &whole).unwrap();
            let start = Instant::now();
            let output = finished(started(&mut home.go_on(&["a", "-p", "three", "--context-full", full])));
            println!(
                "{id}, {full}: {:?} in {:?}: {}",
                output.status.code(),
                start.elapsed(),
                stderr(&output).lines().last().unwrap_or("")
            );
            assert!(matches!(output.status.code(), Some(0 | 65)), "{id}: {}", stderr(&output));
            assert!(stderr(&output).lines().count() < 20, "{id}");
            // Only many turns can become fewer.
            if !id.starts_with("many t") {
                break;
            }
        }
    }
}

#[test]
fn two_processes_on_one_chat() {
    let home = Home::new();
    let path = home.write("a", &[USER, ANSWER]);
    // Somebody has it open.
    let held = File::open(&path).unwrap();
    held.lock().unwrap();
    let before = fs::read(&path).unwrap();
    let output = home.turn("a", "three");
    check("open", &output, 0, "a is open in another pp-run: this one goes on in a copy");
    assert!(fs::read(&path).unwrap() == before, "as it was");
    let names = home.names();
    let copy = names.iter().find(|n| *n != "a.jsonl").unwrap().strip_suffix(".jsonl").unwrap();
    assert_eq!((names.len(), home.said(copy).len(), &home.said(copy)[2].1[..]), (2, 4, "three"));
    assert_eq!(fs::metadata(home.file(copy)).unwrap().mode() & 0o777, 0o600);
    drop(held);
    // At once.
    let mut turns = 2;
    for round in 0..5 {
        let run = |text: &str| started(home.go_on(&["a", "-p", text]).args(["-n", "150", "--ignore-eos"]));
        let n = home.names().len();
        let both = [run("left"), run("right")].map(finished);
        let copies = both.iter().filter(|o| stderr(o).contains("in a copy")).count();
        both.iter().for_each(|o| check("at once", o, 0, ""));
        assert_eq!(home.names().len(), n + copies, "round {round}");
        turns += 2 * (2 - copies);
        assert_eq!(home.said("a").len(), turns, "round {round}");
        // So that the context is not full soon.
        home.write("a", &[USER, ANSWER]);
        turns = 2;
    }
    for name in home.names() {
        let said = home.said(name.strip_suffix(".jsonl").unwrap());
        assert_eq!((&said[0].1[..], &said[1].1[..]), ("one", "two"), "{name}");
    }
    assert!(home.names().len() > 3, "some were at once");
}

#[test]
fn nothing_is_saved_that_is_not_to_be() {
    let home = Home::new();
    let path = home.write("a", &[USER, ANSWER]);
    let before = fs::read(&path).unwrap();
    let output = finished(started(&mut home.go_on(&["a", "-p", "three", "--no-save"])));
    check("--no-save", &output, 0, "1 question");
    assert!(fs::read(&path).unwrap() == before && home.names().len() == 1);
    // One answer is no chat.
    let mut command = home.program();
    assert!(finished(started(command.arg("-m").arg(&home.model).args(["-p", "x", "-n", "2"]))).status.success());
    assert!(fs::read(&path).unwrap() == before && home.names().len() == 1);
}

#[test]
fn chats_are_listed_shown_and_deleted() {
    let home = Home::new();
    let run = |args: &[&str]| finished(started(home.program().arg("chats").args(args)));
    let output = run(&[]);
    check("none", &output, 0, "");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("no chat is saved in "));
    check("none to delete", &run(&["--delete-all"]), 0, "");
    let evil = r#"{"type":"turn","role":"user","content":"\u001b]0;x\u0007\u009b2J\u202eab\nc\rd"}"#;
    home.write("a", &[evil, ANSWER]);
    home.write("b", &[USER, ANSWER]);
    let text = |args: &[&str]| String::from_utf8(run(args).stdout).unwrap();
    let list = text(&[]);
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(list.contains("1 question  model: one"), "{list}");
    assert_eq!(text(&["--show", "b"]), "User:\none\n\nAssistant:\ntwo\n\n");
    let show = text(&["--show", "a"]);
    for out in [&list, &show] {
        let bad = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!out.contains(bad) && out.contains("\\x1b]0;x\\x07\\x9b2J\\u{202e}ab"), "{out:?}");
    }
    assert_eq!(show.lines().nth(2), Some("c\\x0dd"));
    check("unknown", &run(&["--show", "nobody"]), 66, "no such chat");
    check("path", &run(&["--show", "../../x"]), 2, "is no name");

    // A file whose name cannot be a chat's is not listed, even if it is the newest.
    let strays = ["a copy.jsonl", "\u{1b}[2J.jsonl", ".hidden.jsonl"].map(|name| home.chats().join(name));
    strays.iter().for_each(|stray| fs::write(stray, home.head()).unwrap());
    assert_eq!(text(&[]), list);
    check("newest", &finished(started(&mut home.go_on(&["-p", "x"]))), 0, "going on with b");
    strays.iter().for_each(|stray| fs::remove_file(stray).unwrap());

    // Nothing outside is deleted.
    let outside = home.data().join("pp-run/outside.jsonl");
    let inside = home.chats().join("sub");
    fs::create_dir(&inside).unwrap();
    for path in [&outside, &inside.join("x.jsonl"), &home.chats().join("notes.txt")] {
        fs::write(path, home.head()).unwrap();
    }
    let absolute = outside.to_str().unwrap().strip_suffix(".jsonl").unwrap();
    for name in ["../outside", absolute, "sub/x", "..", ".", ""] {
        assert_eq!(run(&["--delete", name]).status.code(), Some(2), "{name}");
    }
    check("unknown", &run(&["--delete", "nobody"]), 66, "no such chat");
    assert_eq!(home.names(), ["a.jsonl", "b.jsonl", "notes.txt", "sub"]);
    // A link is deleted, not what it points to.
    symlink(&outside, home.file("link")).unwrap();
    check("link", &run(&["--delete", "link", "a"]), 0, "");
    assert_eq!(home.names(), ["b.jsonl", "notes.txt", "sub"]);
    // One that cannot be read too; what is no chat stays.
    fs::write(home.file("broken"), "hello\n").unwrap();
    fs::create_dir(home.file("folder")).unwrap();
    symlink(&outside, home.file("link")).unwrap();
    let output = run(&["--delete-all"]);
    check("a folder", &output, 74, "folder.jsonl: cannot be deleted");
    assert_eq!(home.names(), ["folder.jsonl", "notes.txt", "sub"], "the others are");
    assert!(outside.exists() && inside.join("x.jsonl").exists());
}

/// A single answer, asked for in a folder.
fn answer_in(home: &Home, folder: &Path, args: &[&str]) -> Output {
    let mut command = home.program();
    command.arg("-m").arg(&home.model).args(["--chat-template", "chatml", "-n", "4", "--temp", "0"]).args(args);
    finished(started(command.current_dir(folder)))
}

fn continue_in(home: &Home, folder: &Path, args: &[&str]) -> Output {
    finished(started(home.go_on(args).current_dir(folder)))
}

#[test]
fn a_single_answer_goes_on() {
    let home = Home::new();
    let answers = home.data().join("pp-run/answers");
    let [here, there, nowhere] = ["here", "there", "nowhere"].map(|name| home.dir.path().join(name));
    [&here, &there, &nowhere].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let kept = || {
        let entries = fs::read_dir(&answers).into_iter().flatten();
        entries.map(|e| e.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect::<Vec<String>>()
    };
    for args in [&["-p", "x", "--no-save"][..], &["-p", "x", "-no-cnv"]] {
        check("not kept", &answer_in(&home, &here, args), 0, "");
        assert!(!answers.exists(), "{args:?}");
    }
    let first = answer_in(&home, &here, &["-p", "hello", "-sys", "Be brief."]);
    check("here", &first, 0, "generated 4");
    let name = kept().remove(0);
    check("there", &answer_in(&home, &there, &["-p", "elsewhere"]), 0, "generated 4");
    assert_eq!((fs::metadata(&answers).unwrap().mode() & 0o777, kept().len(), home.names().len()), (0o700, 2, 0));
    assert!(kept().iter().all(|n| fs::metadata(answers.join(format!("{n}.jsonl"))).unwrap().mode() & 0o777 == 0o600));
    // The last one of another folder is nobody's business here.
    check("nowhere", &continue_in(&home, &nowhere, &["-p", "and"]), 66, "no chat is saved");
    // Without a trace, and so that it counts.
    let untouched = continue_in(&home, &here, &["-p", "and", "--no-save"]);
    check("no trace", &untouched, 0, &format!("going on with {name}: 1 question"));
    assert_eq!((kept().len(), home.names().len()), (2, 0));
    let second = continue_in(&home, &here, &["-p", "and"]);
    check("goes on", &second, 0, &format!("going on with {name}: 1 question"));
    assert!(second.stdout == untouched.stdout && !stderr(&second).contains("read anew"), "{}", stderr(&second));
    assert_eq!((kept().len(), home.names()), (1, vec![format!("{name}.jsonl")]));
    let said = home.said(&name);
    assert_eq!([&said[0].1, &said[1].1, &said[3].1], ["Be brief.", "hello", "and"]);
    assert_eq!(format!("{}\n", said[2].1), String::from_utf8(first.stdout).unwrap());
    // Now it is a chat, and the last one of all.
    check("chat", &continue_in(&home, &nowhere, &["-p", "more"]), 0, "2 questions");
    // By its name, from anywhere.
    let other = kept().remove(0);
    check("by name", &continue_in(&home, &nowhere, &[&other, "-p", "and"]), 0, &format!("going on with {other}"));
    assert_eq!((kept().len(), home.names().len()), (0, 2));
    check("words", &continue_in(&home, &here, &["and of Italy?"]), 2, "a question goes behind -p");

    // They are listed, shown and deleted as chats are; and they are few.
    for i in 0..22 {
        check("many", &answer_in(&home, &here, &["-p", &format!("number {i}"), "-q"]), 0, "");
    }
    assert_eq!(kept().len(), 20);
    let chats = |args: &[&str]| {
        let output = finished(started(home.program().arg("chats").args(args)));
        check("chats", &output, 0, "");
        String::from_utf8(output.stdout).unwrap()
    };
    let list = chats(&[]);
    assert!(list.lines().count() == 23 && list.contains("number 21") && !list.contains("number 1\n"), "{list}");
    let name = kept().remove(0);
    assert!(chats(&["--show", &name]).starts_with("User:\nnumber "));
    chats(&["--delete", &name]);
    assert_eq!(kept().len(), 19);
    chats(&["--delete-all"]);
    assert_eq!((kept().len(), home.names().len()), (0, 0));

    // Where nothing can be kept, and of a model whose path is no text.
    fs::remove_dir(&answers).unwrap();
    fs::write(&answers, "").unwrap();
    let output = answer_in(&home, &here, &["-p", "x"]);
    check("no folder", &output, 0, "generated 4");
    assert!(!stderr(&output).contains("warning"), "{}", stderr(&output));
    fs::remove_file(&answers).unwrap();
    let odd = home.dir.path().join(std::ffi::OsStr::new("odd")).join("m.gguf");
    let odd = PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(
        &[odd.parent().unwrap().as_os_str().as_encoded_bytes(), b"\xff.gguf"].concat(),
    ));
    fs::copy(&home.model, &odd).unwrap();
    let mut command = home.program();
    command.arg("-m").arg(&odd).args(["--chat-template", "chatml", "-n", "4", "-p", "x"]);
    check("odd", &finished(started(&mut command)), 0, "generated 4");
    assert_eq!(kept().len(), 1);
}

#[test]
fn a_chat_begins_in_a_pipe_and_goes_on_at_the_terminal() {
    let home = Home::new();
    let mut command = home.program();
    command.arg("-m").arg(&home.model).args(["--chat-template", "chatml", "-n", "4", "--temp", "0"]);
    command.current_dir(home.dir.path()).stdin(Stdio::piped());
    let mut child = started(&mut command);
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"from a pipe\n").unwrap();
    check("pipe", &finished(child), 0, "generated 4");
    let mut command = home.go_on(&["--simple-io", "--no-history"]);
    command.env("TERM", "dumb").current_dir(home.dir.path());
    let mut chat = Term::with(command, 80, 24);
    chat.expect("1 question");
    chat.expect("from a pipe");
    chat.prompt();
    chat.line("and more");
    chat.expect("wrote ");
    chat.prompt();
    chat.line("/exit");
    assert_eq!(chat.end(), 0);
    let name = home.names().remove(0);
    assert_eq!(home.said(name.strip_suffix(".jsonl").unwrap()).len(), 4);
}

/// A chat on a terminal, with some variables of the environment.
fn terminal(home: &Home, more: &[(&str, &str)]) -> Term {
    let mut command = Command::new("bash");
    apart(&mut command);
    let line = "umask 0; exec \"$0\" \"$@\"";
    command.args(["-c", line, env!("CARGO_BIN_EXE_pp-run"), "-m"]).arg(&home.model);
    command.args(["--chat-template", "chatml", "-n", "4", "--simple-io"]).envs(more.iter().copied());
    command
        .env("PP_ARG_THREADS", "1")
        .env("XDG_DATA_HOME", home.data())
        .env("PP_ARG_NO_HISTORY", "1")
        .env("TERM", "dumb");
    Term::with(command, 80, 24)
}

#[test]
fn only_its_owner_can_read_a_chat() {
    let home = Home::new();
    fs::remove_dir_all(home.data()).unwrap();
    let mut chat = terminal(&home, &[]);
    chat.prompt();
    assert!(!home.data().exists(), "nothing was said yet");
    chat.line("hello");
    chat.expect("wrote ");
    chat.prompt();
    chat.send("\u{4}");
    chat.expect("kept as ");
    assert_eq!(chat.end(), 0);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    let names = home.names();
    assert_eq!(names.len(), 1);
    assert_eq!(mode(&home.chats().join(&names[0])), 0o600);
    assert_eq!((mode(&home.chats()), mode(&home.data().join("pp-run"))), (0o700, 0o700));
    assert_eq!(home.said(names[0].strip_suffix(".jsonl").unwrap())[0].1, "hello");
    assert_eq!(finished(started(&mut home.go_on(&["-p", "x"]))).status.code(), Some(0));
}

#[test]
fn nowhere_to_save() {
    for blocked in ["data", "data/pp-run", "data/pp-run/chats"] {
        let home = Home::new();
        let path = home.dir.path().join(blocked);
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "a file").unwrap();
        let mut chat = terminal(&home, &[]);
        chat.prompt();
        for text in ["hello", "again", "and again"] {
            chat.line(text);
            chat.expect("wrote ");
            chat.prompt();
        }
        let seen = chat.text();
        assert_eq!(seen.matches("error: ").count(), 1, "{blocked}: {seen}");
        assert_eq!(seen.matches("this chat is not kept at present").count(), 1, "{blocked}: {seen}");
        chat.line("/exit");
        assert_eq!(chat.end(), 0);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a file", "{blocked}");
        let output = home.turn("a", "x");
        assert_eq!(output.status.code(), Some(66), "{blocked}: {}", stderr(&output));
        assert_eq!(stderr(&output).lines().count(), 1, "{blocked}: {}", stderr(&output));
        let output = finished(started(home.program().arg("chats")));
        assert!(matches!(output.status.code(), Some(0 | 66)), "{blocked}: {}", stderr(&output));
    }
    // Chats have no place at all.
    let home = Home::new();
    let mut command = home.go_on(&["a", "-p", "x"]);
    check(
        "no home",
        &finished(started(command.env_remove("XDG_DATA_HOME").env_remove("HOME"))),
        66,
        "chats have no place",
    );
}

/// Killed at any moment of an answer: what was whole before is, and it goes on.
#[test]
fn killed_at_any_moment() {
    let home = Home::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let real = smollm2();
    // The real model takes long enough for parts of an answer to be noted, and on no machine gets to the end of so many tokens before it is killed.
    let (mut whole, mut begun, mut nothing) = (0, 0, 0);
    for i in 0..40 {
        let long = i % 4 == 0;
        let name = format!("c{i}");
        let model = if long { &real } else { &home.model };
        fs::write(home.file(&name), format!("{}{USER}\n{ANSWER}\n", head(model))).unwrap();
        check(&name, &home.turn(&name, "three"), 0, "");
        let earlier = home.said(&name);
        let n = if long { "4000" } else { "400" };
        let mut command = home.go_on(&[&name, "-p", "four", "-n", n, "--ignore-eos"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(random(if long { 4000 } else { 1500 })));
        child.kill().unwrap();
        child.wait().unwrap();
        let past = home.past(&name);
        let said = home.said(&name);
        assert_eq!(said[..4], earlier, "{name}");
        match said.len() {
            4 => nothing += 1,
            6 if past.unfinished => begun += 1,
            6 => whole += 1,
            n => panic!("{name}: {n} turns"),
        }
        let output = home.turn(&name, "five");
        check(&name, &output, 0, &format!("going on with {name}: {} questions", said.len() / 2));
        let after = home.said(&name);
        assert_eq!((&after[..said.len()], after.len()), (&said[..], said.len() + 2), "{name}");
    }
    println!("killed: {whole} answers were whole, {begun} begun, {nothing} not");
    assert!(whole > 0 && begun > 0 && nothing > 0, "at different moments");
}

/// The line editor once started `tput` for each piece of an answer, to ask for a width that no terminal had; that process kept the chat's
/// file open.
#[test]
fn an_answer_starts_no_other_program() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    home.write("a", &[USER, ANSWER]);
    let (bin, mark) = (home.dir.path().join("bin"), home.dir.path().join("mark"));
    fs::create_dir(&bin).unwrap();
    let tput = bin.join("tput");
    fs::write(&tput, format!("#!/bin/sh\n: > {}\n", mark.display())).unwrap();
    fs::set_permissions(&tput, fs::Permissions::from_mode(0o755)).unwrap();
    // In a session of its own there is no terminal at all.
    let mut command = Command::new("setsid");
    apart(&mut command).args([
        "-w",
        env!("CARGO_BIN_EXE_pp-run"),
        "--continue",
        "a",
        "-p",
        "x",
        "-n",
        "4",
        "--chat-template",
        "chatml",
    ]);
    command
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("XDG_DATA_HOME", home.data())
        .stdin(Stdio::null());
    check("tput", &finished(started(&mut command)), 0, "1 question");
    assert!(!mark.exists(), "tput was started");
}

/// R41: the n-th call fails while a chat goes on that has to be repaired first, or a copy of it is made. What was said is there, and the
/// answer comes if only the saving failed.
#[test]
fn the_nth_call_fails() {
    let home = Home::new();
    let shim = shim(home.dir.path());
    let mark = home.dir.path().join("mark");
    let begun = [USER, ANSWER, USER, r#"{"type":"part","content":"We"}"#];
    let mut reached = 0;
    for (call, error) in [
        ("open", 13),
        ("open", 24),
        ("read", 5),
        ("write", 28),
        ("fsync", 5),
        ("fdatasync", 28),
        ("ftruncate", 5),
        ("flock", 11),
        ("flock", 37),
    ] {
        for (n, copy) in (1..).flat_map(|n| [(n, false), (n, true)]) {
            assert!(n < 500, "{call} has no end");
            let _ = fs::remove_file(&mark);
            fs::remove_dir_all(home.chats()).unwrap();
            fs::create_dir(home.chats()).unwrap();
            let path = home.write("a", &begun);
            let base = [fs::read(&path).unwrap(), b"{\"torn".to_vec()].concat();
            fs::write(&path, &base).unwrap();
            let held = File::open(&path).unwrap();
            if copy {
                held.lock().unwrap();
            }
            let mut command = home.go_on(&["a", "-p", "three"]);
            command.env("LD_PRELOAD", &shim).env("FAULT_CALL", call).env("FAULT_N", n.to_string());
            command.env("FAULT_ERRNO", error.to_string()).env("FAULT_MARK", &mark);
            let output = finished(started(&mut command));
            drop(held);
            let text = stderr(&output);
            let what = format!("{call} {n}, error {error}, copy {copy}: {:?} {text}", output.status);
            assert!(matches!(output.status.code(), Some(0 | 1 | 65 | 66 | 71 | 73 | 74)), "{what}");
            // What failed on stdout or stderr is not seen there.
            let errors = text.lines().filter(|l| l.starts_with("pp-run: error: ")).count();
            assert!(call == "write" || errors <= 1, "{what}");
            if output.status.success() {
                assert!(!output.stdout.is_empty(), "{what}");
                assert!(errors == usize::from(text.contains("this chat is not kept")), "{what}");
            }
            if matches!(call, "fdatasync" | "ftruncate") && mark.exists() {
                assert!(output.status.success() && errors == 1, "{what}");
            }
            let said = home.said("a");
            assert!(said.len() >= 4 && said[3].1.starts_with("We\n["), "{what}: {said:?}");
            assert!(!copy || fs::read(&path).unwrap() == base, "{what}");
            // Whatever failed works again, and every file is a chat.
            assert_eq!(home.turn("a", "four").status.code(), Some(0), "{what}");
            assert_eq!(home.said("a").len(), said.len() + 2, "{what}");
            for name in home.names() {
                let past = home.past(name.strip_suffix(".jsonl").unwrap());
                assert!(!past.torn && past.turns.len() >= 4, "{what}: {name}");
            }
            if !mark.exists() && copy {
                break;
            }
            reached += usize::from(mark.exists());
        }
    }
    println!("{reached} calls failed");
    assert!(reached > 100, "{reached} calls");
}

#[test]
fn a_name_that_cannot_be_given() {
    for (call, error) in [("link", "1"), ("link", "28"), ("unlink", "5")] {
        let home = Home::new();
        let shim = shim(home.dir.path());
        let mark = home.dir.path().join("mark");
        let more = [
            ("LD_PRELOAD", shim.to_str().unwrap()),
            ("FAULT_CALL", call),
            ("FAULT_N", "1"),
            ("FAULT_ERRNO", error),
            ("FAULT_MARK", mark.to_str().unwrap()),
        ];
        let mut chat = terminal(&home, &more);
        chat.prompt();
        chat.line("hello");
        chat.expect("wrote ");
        chat.prompt();
        chat.line("/save it");
        chat.expect("error: ");
        chat.prompt();
        assert_eq!(home.names().len(), 1, "{call}");
        chat.line("/save it");
        chat.expect("kept as it");
        chat.prompt();
        chat.line("again");
        chat.expect("wrote ");
        chat.prompt();
        chat.send("\u{4}");
        assert_eq!(chat.end(), 0);
        assert_eq!((home.names(), home.said("it").len()), (vec!["it.jsonl".to_owned()], 4), "{call}");
    }
}
