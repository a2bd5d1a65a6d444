//! The chat, on a pseudo-terminal: its keys, its commands, what is on the screen, and what is left when it ends.
#![cfg(unix)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::script::Script;
use common::term::Term;
use common::{PATIENCE, pp_run, smollm2};
use ptyprocess::Signal;

const UP: &str = "\u{1b}[A";
const CTRL_C: &str = "\u{3}";
const CTRL_D: &str = "\u{4}";
const CTRL_G: &str = "\u{7}";
const CTRL_J: &str = "\n";

/// What two answers say.
const SAYS: [&str; 2] = [
    "The first answer has some words that must be kept whole where a line of a narrow terminal ends.\nIt has a second line.",
    "The second answer is short.",
];

/// A home of its own for a chat, with a model that says what it is told.
struct Home {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Home {
    fn new(script: &Script) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("script.gguf");
        script.write(&model, 4096);
        Home { dir, model }
    }

    fn says(answers: &[&str]) -> Home {
        Home::new(&Script::saying(answers))
    }

    /// A home with SmolLM2.
    fn smollm2() -> Home {
        Home { dir: tempfile::tempdir().unwrap(), model: smollm2() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = pp_run();
        command.arg("-m").arg(&self.model).args(["--temp", "0"]).args(args);
        self.at_home(&mut command);
        command
    }

    fn at_home(&self, command: &mut Command) {
        // One thread: tests run side by side, and threads that wait for each other by spinning starve.
        command.env("PP_ARG_THREADS", "1").env("HOME", self.dir.path()).current_dir(self.dir.path());
        for name in ["XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "VISUAL", "EDITOR"] {
            command.env_remove(name);
        }
    }

    fn chat(&self, args: &[&str]) -> Term {
        self.chat_at(args, 80, 24)
    }

    fn chat_at(&self, args: &[&str], columns: u16, rows: u16) -> Term {
        let mut term = Term::new(self.command(args), columns, rows);
        term.expect("Ctrl-D leaves");
        term.prompt();
        term
    }

    fn chats(&self) -> PathBuf {
        self.dir.path().join(".local/share/pp-run/chats")
    }

    /// The only saved chat, as text.
    fn saved(&self) -> String {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.chats()).unwrap().map(|e| e.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::read_to_string(files.pop().unwrap()).unwrap()
    }

    /// How many parts of answers are in it: it gets one each second while an answer comes.
    fn parts(&self) -> usize {
        self.saved().matches(r#""type":"part""#).count()
    }

    /// What the user said in the chat that is saved.
    fn asked(&self) -> Vec<String> {
        let lines = self.saved();
        let lines = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines.filter(|l| l["role"] == "user").map(|l| l["content"].as_str().unwrap().to_owned()).collect()
    }
}

/// A turn, and its answer.
#[track_caller]
fn ask(term: &mut Term, text: &str) {
    term.line(text);
    term.expect("wrote ");
    term.prompt();
}

/// A command, what it says, and the prompt after it.
#[track_caller]
fn command(term: &mut Term, line: &str, says: &[&str]) {
    term.line(line);
    says.iter().for_each(|s| term.expect(s));
    term.prompt();
}

#[track_caller]
fn leave(mut term: Term) {
    term.send(CTRL_D);
    let (code, text) = term.finish();
    assert_eq!(code, 0, "{text}");
}

#[test]
fn every_command() {
    let home = Home::says(&SAYS);
    std::fs::write(home.dir.path().join("a file.txt"), "zebra\n").unwrap();
    std::fs::write(home.dir.path().join("b.txt"), "yak\n").unwrap();
    std::fs::write(home.dir.path().join("c.txt"), b"\0\xff").unwrap();
    let mut t = home.chat(&[]);
    command(&mut t, "/help", &["/regen", "/map", "Ctrl-C"]);
    command(&mut t, "/?", &["/regen"]);
    command(&mut t, "/regen", &["no answer to make again"]);
    command(&mut t, "/undo", &["nothing to take back"]);
    command(&mut t, "/ab", &["there was no answer yet"]);
    command(&mut t, "/pop", &["no point is remembered"]);
    command(&mut t, "/map", &["/prune 0.2 leaves out"]);
    command(&mut t, "/why", &["there was no answer yet"]);
    command(&mut t, "/show prompt", &["there was no answer yet"]);
    command(&mut t, "/save", &["is not kept yet"]);
    ask(&mut t, "One?");
    command(&mut t, "/push", &["is remembered"]);
    ask(&mut t, "Two?");
    t.line("/regen");
    t.expect("The second answer is short.");
    t.expect("(");
    t.expect(" cached)");
    t.prompt();
    command(&mut t, "/context", &["4096 tokens in use", "1 you", "answer", "2 you", "free"]);
    command(&mut t, "/stats", &["answers 3", "seed"]);
    command(&mut t, "/undo", &["1 left"]);
    t.line("/regen");
    t.expect("The first answer");
    t.prompt();
    command(&mut t, "/pop", &["1 questions"]);
    command(&mut t, "/system", &["no system prompt"]);
    command(&mut t, "/system Be brief.", &["from the next turn on"]);
    command(&mut t, "/show system", &["Be brief."]);
    command(&mut t, "/show", &["architecture", "llama"]);
    command(&mut t, "/show template", &["namespace"]);
    command(&mut t, "/show prunable", &["heads"]);
    command(&mut t, "/show prompt", &["[<|user|>]", "'O'", "[<|go1|>]"]);
    command(
        &mut t,
        "/why",
        &[
            "prompt ",
            "from the cache",
            "pruning none",
            "ended by end of text",
            "drafts none",
            "kernels ",
            "keys in f16, values in f16",
            "seed ",
        ],
    );
    command(&mut t, "/show nothing", &["not one of: info"]);
    command(&mut t, "/set", &["temp 0", "top-k 40"]);
    command(&mut t, "/set temp 0.5", &["temp is 0.5"]);
    command(&mut t, "/set parameter TOP_K 7", &["top-k is 7"]);
    command(&mut t, "/show parameters", &["temp 0.5", "top-k 7"]);
    command(&mut t, "/set temp warm", &["error"]);
    command(&mut t, "/set temprature 1", &["did you mean 'temp'"]);
    command(&mut t, "/set num_ctx 1", &["start with it as a flag"]);
    command(&mut t, "/set draft model:none.gguf", &["a model that drafts is loaded at the start"]);
    command(&mut t, "/set top-p", &["wants a value"]);
    command(&mut t, "/set ignore-eos maybe", &["on, off"]);
    command(&mut t, "/set samplers top_q", &["is not one of: penalties"]);
    command(&mut t, "/set logit-bias 99999999+1", &["there is no token 99999999"]);
    command(&mut t, "/set logit-bias 1-inf", &["from the next turn on"]);
    command(&mut t, "/set logit-bias 2-inf", &["from the next turn on"]);
    command(&mut t, "/set", &["logit-bias 1-inf", "logit-bias 2-inf"]);
    command(&mut t, "/set logit-bias", &["logit-bias is"]);
    command(&mut t, "/set json-schema {", &["--json-schema: the schema is not JSON"]);
    command(&mut t, "/set json-schema none.json", &["cannot be read"]);
    command(&mut t, "/set grammar root ::= \"XYX\"", &["from the next turn on"]);
    t.line("Form?");
    t.expect("XYX");
    t.prompt();
    command(&mut t, "/undo", &["left"]);
    command(&mut t, "/set grammar off", &["grammar is off"]);
    command(&mut t, "/prune 0.5", &["leaves nothing to prune: the model has 1 layers"]);
    command(&mut t, "/prune 2", &["0 to 0.8"]);
    command(&mut t, "/prune", &["nothing is left out"]);
    command(&mut t, "/prune off", &["nothing is left out"]);
    command(&mut t, "/set verbose", &["all numbers"]);
    t.line("Three?");
    t.expect("generated ");
    t.expect("seed ");
    t.prompt();
    command(&mut t, "/set quiet", &["no line of numbers"]);
    t.line("Four?");
    t.prompt();
    command(&mut t, "/set quiet off", &["one short line"]);
    command(&mut t, "/read missing.txt", &["cannot be read"]);
    command(&mut t, "/read c.txt", &["is no text"]);
    command(&mut t, "/read a file.txt", &["1 file of", "goes with your next message"]);
    command(&mut t, "/glob *.txt", &["2 files of", "1 that are no text"]);
    command(&mut t, "/glob *.xyz", &["no file is like"]);
    command(&mut t, "/save sea", &["kept as sea"]);
    command(&mut t, "/save ../sea", &["no name for a chat"]);
    command(&mut t, "/load", &["sea"]);
    command(&mut t, "/load sea", &["this is sea"]);
    command(&mut t, "/load nothing", &["no such chat"]);
    command(&mut t, "/hepl", &["did you mean '/help'"]);
    ask(&mut t, "//etc is a path");
    // What is between quotes is no command.
    ask(&mut t, "\"\"\"/help\"\"\"");
    command(&mut t, "/read a file.txt", &["goes with your next message"]);
    command(&mut t, "/read -", &["no file goes"]);
    command(&mut t, "/read", &["which files?"]);
    command(&mut t, "/clear", &["forgotten"]);
    t.line("/BYE");
    assert_eq!(t.end(), 0);

    let asked = home.asked();
    // The system prompt made "One?" anew.
    assert_eq!(asked.len(), 8, "{asked:?}");
    assert_eq!(asked[7], "/help");
    assert!(
        asked[6].contains("zebra") && asked[6].contains("yak") && asked[6].ends_with("/etc is a path"),
        "{asked:?}"
    );
    // Other programs' words for leaving work too.
    for word in ["exit", "Quit", "bye"] {
        let mut t = home.chat(&["--no-save", "--no-history"]);
        t.line(word);
        assert_eq!(t.end(), 0, "{word}");
    }
    let history = home.dir.path().join(".local/state/pp-run/history");
    let text = std::fs::read_to_string(&history).unwrap();
    assert!(text.contains("One?") && text.contains("/clear"), "{text}");
    assert_eq!(std::fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn two_answers_are_compared() {
    let home = Home::says(&SAYS);
    let mut t = home.chat(&["--seed", "3"]);
    ask(&mut t, "One?");
    command(
        &mut t,
        "/ab predict=9",
        &[
            "as it is:",
            "The first answer",
            "predict 9:",
            "the answers part after 5 words: as it is:",
            "predict 9:",
            "as it is: read ",
            "predict 9: read ",
        ],
    );
    command(&mut t, "/ab predict=9 predict 9 predict", &["one setting or two"]);
    command(&mut t, "/ab temp=0.1 temp=0.2", &["temp 0.1:", "temp 0.2:", "both answers are the same, all 24 words"]);
    command(&mut t, "/ab", &["leaves nothing to prune"]);
    command(&mut t, "/ab temprature=1", &["did you mean 'temp'"]);
    for (choice, told) in [("1", "you chose"), ("=", "you chose neither")] {
        t.line("/ab predict=9 --blind");
        t.expect("answer 1:");
        t.expect("answer 2:");
        t.expect("which is better?");
        t.prompt();
        let shown = t.screen();
        assert!(!shown.rsplit("--blind").next().unwrap().contains("predict 9"), "{shown}");
        t.line("what?");
        t.expect("which is better?");
        t.prompt();
        command(&mut t, choice, &["predict 9", told, "read "]);
    }
    // Of equals none is asked for, and a command ends the question.
    command(
        &mut t,
        "/ab temp=0.1 temp=0.2 --blind",
        &["answer 2:", "both answers are the same", "1 was temp 0.", "read "],
    );
    t.line("/ab predict=9 --blind");
    t.expect("which is better?");
    t.prompt();
    command(&mut t, "/help", &["you chose neither", "read "]);
    // The settings and the conversation are as they were.
    command(&mut t, "/set", &["temp 0", "seed 3"]);
    ask(&mut t, "Two?");
    assert!(t.screen().contains("The second answer is short."), "{}", t.screen());
    leave(t);
    assert_eq!(home.asked(), ["One?", "Two?"]);
    assert_eq!(home.saved().matches("The first answer").count(), 1);
}

#[test]
fn thoughts_are_turned_off_by_what_the_template_knows() {
    let home = Home::says(&SAYS);
    let template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}{% if enable_thinking is defined and not enable_thinking %}Q{% endif %}<|go1|>";
    let mut t = home.chat(&["--chat-template", template]);
    ask(&mut t, "One?");
    command(&mut t, "/think off", &["without thinking"]);
    ask(&mut t, "Two?");
    command(&mut t, "/show prompt", &["'Q'", "[<|go1|>]"]);
    command(&mut t, "/think dim", &["dimmed"]);
    ask(&mut t, "Three?");
    t.line("/show prompt");
    t.expect("'T'");
    t.prompt();
    assert_eq!(t.text().matches("'Q'").count(), 1, "{}", t.text());
    leave(t);
}

#[test]
fn every_key() {
    let home = Home::says(&["Yes."]);
    let editor = home.dir.path().join("editor.sh");
    std::fs::write(
        &editor,
        "#!/bin/sh\ntr a-z A-Z <\"$2\" >\"$2.new\"; echo more >>\"$2.new\"; mv \"$2.new\" \"$2\"\n",
    )
    .unwrap();
    std::fs::set_permissions(&editor, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(home.dir.path().join("notes.txt"), "words").unwrap();
    let mut c = home.command(&[]);
    c.env("EDITOR", format!("{} --wait", editor.display()));
    let mut t = Term::new(c, 80, 24);
    t.prompt();
    // Emacs' keys: to both ends, kill and yank, a word back.
    ask(&mut t, "b\u{1}a \u{5}c\u{1}\u{b}\u{19} d e\u{17}");
    // Lines: Ctrl-J, Alt-Enter, a backslash, quotes, a paste.
    ask(&mut t, &format!("one{CTRL_J}two\u{1b}\rthree\\\rfour"));
    t.send("\"\"\"five\r");
    std::thread::sleep(Duration::from_millis(100));
    ask(&mut t, "six \\\"\"\"");
    ask(&mut t, "\u{1b}[200~seven \\\r\neight\rnine\u{1b}[201~");
    // The history: the last text, whole.
    ask(&mut t, UP);
    // Ctrl-R searches.
    t.send("\u{12}thre");
    std::thread::sleep(Duration::from_millis(100));
    ask(&mut t, "");
    // An editor.
    t.send(&format!("text{CTRL_G}"));
    t.expect("TEXTmore");
    ask(&mut t, "");
    // Completion: of a command, a setting, a file.
    t.send("/conte\t");
    t.expect("/context");
    t.line("");
    t.expect("tokens in use");
    t.prompt();
    t.send("/set repeat-p\t");
    t.expect("penalty");
    t.line("1.5");
    t.expect("repeat-penalty is 1.5");
    t.prompt();
    t.send("/read no\t");
    t.expect("notes.txt");
    t.line("");
    t.expect("goes with your next message");
    t.prompt();
    // Wide characters have two columns, combining ones none.
    t.send("\u{4f60}\u{597d}e\u{301}x");
    t.expect("x");
    assert_eq!(t.cursor().1, 2 + 2 + 2 + 1 + 1);
    // What is typed is gone after Ctrl-U, and an empty line asks nothing.
    t.send("\u{15}");
    t.line("");
    // Between two lines the terminal is not the editor's, and takes Ctrl-D for itself.
    t.prompt();
    leave(t);
    let asked = home.asked();
    let four = "one\ntwo\nthree\nfour";
    let pasted = "seven \\\neight\nnine";
    assert_eq!(asked[..7], ["a bc d ", four, "five\nsix \\", pasted, pasted, four, "TEXTmore"]);
    assert!(asked[7].contains("words"), "{asked:?}");

    // The history is there in the next chat, unless nothing is to be kept.
    let mut t = home.chat(&["--no-history", "--no-save"]);
    t.send(UP);
    ask(&mut t, "secret");
    leave(t);
    let mut t = home.chat(&["--no-save"]);
    t.send(UP);
    t.expect("/read notes.txt");
    t.send("\u{15}");
    leave(t);
    let history = std::fs::read_to_string(home.dir.path().join(".local/state/pp-run/history")).unwrap();
    assert!(!history.contains("secret") && !home.saved().contains("secret"));
}

#[test]
fn keys_pressed_ahead_wait_for_the_prompt() {
    let home = Home::says(&["Yes.", "No."]);
    let mut t = home.chat(&[]);
    // Two lines at once, the second while the first is answered.
    t.send("one\rtwo\r");
    t.expect("wrote ");
    t.expect("wrote ");
    t.prompt();
    assert_eq!(home.asked(), ["one", "two"]);
    // To leave so is no error.
    t.send(&format!("{CTRL_C}{CTRL_C}"));
    let (code, text) = t.finish();
    assert!(code == 130 && !text.contains("error"), "{text}");
}

/// Words without an end, which come slowly.
fn endless() -> Home {
    let words: String = (0..400).map(|i| format!("word{i} ")).collect();
    Home::new(&Script { endless: true, ..Script::saying(&[&words]) })
}

#[test]
fn lines_typed_during_an_answer_are_each_their_own() {
    let home = endless();
    let mut t = home.chat(&["--power", "0.01"]);
    t.line("go");
    t.expect("word1 ");
    // The Enter key, Ctrl-J, Backspace and Ctrl-C are what they are at the prompt, and Ctrl-C takes nothing away.
    for line in ["/set predict 5", "two", &format!("three{CTRL_J}thirt\u{7f}d"), "four \\", "five", "/context"] {
        t.line(line);
    }
    t.send(CTRL_C);
    t.expect("what came is kept");
    t.expect("predict is 5");
    (0..3).for_each(|_| t.expect("wrote 5"));
    t.expect("tokens in use");
    t.prompt();
    assert_eq!(home.asked(), ["go", "two", "three\nthird", "four \nfive"]);
    // Keys for the end wait for their turn, too.
    t.send(&format!("six\r{CTRL_D}"));
    assert_eq!(t.end(), 0);
    assert_eq!(home.asked().len(), 5);
}

#[test]
fn keys_pressed_while_the_model_is_loaded_wait_for_the_prompt() {
    let home = Home::smollm2();
    let mut t = Term::new(home.command(&["-n", "4", "--check-tensors"]), 80, 24);
    // It is when the load begins.
    t.keeps_enter();
    t.send("one\rtwo\r");
    t.expect("wrote 4");
    t.expect("wrote 4");
    t.prompt();
    leave(t);
    assert_eq!(home.asked(), ["one", "two"]);
}

#[test]
fn a_text_is_changed_after_a_backslash_began_its_next_line() {
    let home = Home::says(&["Yes."]);
    let mut t = home.chat(&[]);
    // The line before is changed, and one is taken away.
    ask(&mut t, &format!("one\\\rtwo{UP}\u{5} more"));
    ask(&mut t, "\u{1}one\\\rtwo\u{1}\u{7f}-");
    // A backslash that is none of these.
    ask(&mut t, "a\\b\\c");
    leave(t);
    assert_eq!(home.asked(), ["one more\ntwo", "one-two", "a\\b\\c"]);
}

/// What is drawn depends on the prompt, the options and the seed: not on turns that were taken back, nor on who read the prompt first.
#[test]
fn an_answer_is_the_same_however_its_prompt_came_about() {
    // All but the answers' own tokens are equally likely, on any processor: what is drawn shows the seed and the penalties.
    let sampling =
        ["--temp", "4", "--seed", "7", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--ignore-eos", "-n", "24"];
    let penalties =
        ["--repeat-penalty", "1.3", "--repeat-last-n", "-1", "--presence-penalty", "2", "--frequency-penalty", "1"];
    let args = [&sampling[..], &penalties].concat();
    let answers = |home: &Home| -> Vec<String> {
        let lines = home.saved();
        let lines = lines.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines.filter(|l| l["role"] == "assistant").map(|l| l["content"].as_str().unwrap().to_owned()).collect()
    };
    let [first, second] = ["what is the sea", "and what is salt"];
    let home = Home::says(&["yes", "no"]);
    let mut t = home.chat(&args);
    ask(&mut t, first);
    ask(&mut t, second);
    command(&mut t, "/undo", &["1 left"]);
    ask(&mut t, second);
    ask(&mut t, "/regen");
    command(&mut t, "/undo", &["1 left"]);
    command(&mut t, "/undo", &["0 left"]);
    ask(&mut t, first);
    ask(&mut t, second);
    command(&mut t, "/clear", &["forgotten"]);
    ask(&mut t, first);
    leave(t);
    let [a, b, c, d, e, f, g] = answers(&home).try_into().unwrap();
    assert_eq!((&a, &b), (&e, &f));
    assert_eq!((&b, &a), (&c, &g));
    assert_ne!(c, d, "another answer is another one");
    // One process for each turn; and a single answer to the same text.
    let home = Home::says(&["yes", "no"]);
    let mut t = home.chat(&args);
    ask(&mut t, first);
    leave(t);
    let mut t = home.chat(&[&args[..], &["--continue"]].concat());
    ask(&mut t, second);
    leave(t);
    assert_eq!(answers(&home), [a.clone(), b]);
    let one = [&args[..], &["-p", first, "--output-format", "json"]].concat();
    let one = home.command(&one).stdin(Stdio::null()).output().unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&one.stdout).unwrap()["text"], a);
}

#[test]
fn simple_io_sends_no_control_sequences() {
    let home = Home::says(&["**Yes.**"]);
    for more in [&[][..], &["--color", "on"], &["--markdown", "on"]] {
        let mut t = home.chat(&[&["--simple-io"][..], more].concat());
        let seen = t.shared();
        t.line("one \\\rtwo");
        t.expect("**Yes.**");
        t.expect("wrote ");
        t.prompt();
        t.line("\"\"\"three \\\rfour\"\"\"");
        t.expect("wrote ");
        t.prompt();
        t.send(CTRL_C);
        t.expect("Ctrl-C again leaves");
        t.prompt();
        leave(t);
        let bytes = seen();
        assert!(!bytes.contains(&0x1b), "{more:?}: {}", String::from_utf8_lossy(&bytes).escape_debug());
        assert!(home.saved().contains(r"one \ntwo") && home.saved().contains(r"three \\\nfour"), "{}", home.saved());
        std::fs::remove_dir_all(home.chats()).unwrap();
    }
    let mut t = home.chat(&["--simple-io"]);
    let seen = t.shared();
    t.signal(Signal::SIGTERM);
    assert_eq!(t.finish().0, 143);
    assert!(!seen().contains(&0x1b));
}

#[test]
fn answers_of_a_chat_go_through_a_pipe() {
    let home = Home::says(&["Yes."]);
    let inner = home.command(&[]);
    let mut c = Command::new("sh");
    c.args(["-c", "\"$0\" \"$@\" | tee log.txt"]).arg(inner.get_program()).args(inner.get_args());
    home.at_home(&mut c);
    let mut t = Term::new(c, 80, 24);
    t.expect("Ctrl-D leaves");
    t.prompt();
    for question in ["One?", "Two?"] {
        t.line(question);
        t.expect("Yes.");
        t.expect("wrote ");
        t.prompt();
    }
    leave(t);
    assert_eq!(std::fs::read_to_string(home.dir.path().join("log.txt")).unwrap(), "Yes.\nYes.\n");
    assert_eq!(home.asked(), ["One?", "Two?"]);
}

#[test]
fn an_answer_that_a_limit_cut_is_marked() {
    let home = endless();
    let mut t = home.chat(&["-n", "6"]);
    t.line("go");
    t.expect("the answer was cut at 6 tokens (-n)");
    t.prompt();
    command(&mut t, "/set quiet", &["no line of numbers"]);
    t.line("on");
    t.expect("the answer was cut at 6 tokens (-n)");
    t.prompt();
    leave(t);
}

#[test]
fn an_editor_changes_the_last_question() {
    let home = Home::says(&["Yes."]);
    let mut c = home.command(&[]);
    c.env("VISUAL", "sed -i s/salty/blue/");
    let mut t = Term::new(c, 80, 24);
    t.prompt();
    ask(&mut t, "Why is the sea salty?");
    t.line("/edit");
    t.expect("Why is the sea blue?");
    ask(&mut t, "");
    leave(t);
    assert_eq!(home.asked(), ["Why is the sea salty?", "Why is the sea blue?"]);
    // One that fails changes nothing.
    let mut c = home.command(&["--continue"]);
    c.env("VISUAL", "false");
    let mut t = Term::new(c, 80, 24);
    t.expect("1 question");
    t.prompt();
    command(&mut t, "/edit", &["the text is as it was"]);
    command(&mut t, "/undo", &["0 left"]);
    leave(t);
}

/// What a screen is to show of a text: broken between words, by another's rules.
fn wrapped(text: &str, columns: usize) -> String {
    let options = textwrap::Options::new(columns).word_splitter(textwrap::WordSplitter::NoHyphenation);
    text.lines().flat_map(|l| textwrap::wrap(l, &options)).map(|l| l.trim_end().to_owned() + "\n").collect()
}

#[test]
fn a_conversation_looks_the_same_at_any_width() {
    for (columns, rows) in [(80, 24), (40, 10), (200, 60)] {
        let home = Home::says(&SAYS);
        let mut t = home.chat_at(&["--no-show-timings"], columns, rows);
        for question in ["One?", "Two?"] {
            t.line(question);
            t.prompt();
        }
        command(&mut t, "/undo", &["1 left"]);
        let width = usize::from(columns);
        let note = |text: &str| {
            let options = textwrap::Options::new(width).subsequent_indent("  ");
            textwrap::fill(&format!("pp-run: {text}"), options) + "\n"
        };
        let want = note("context of 4096 tokens; /help lists commands, Ctrl-D leaves")
            + "> One?\n"
            + &wrapped(SAYS[0], width)
            + "> Two?\n"
            + &wrapped(SAYS[1], width)
            + "> /undo\n"
            + &note("the last question and its answer are taken back; 1 left")
            + ">";
        assert_eq!(t.screen(), want, "{columns} columns");
        leave(t);
    }
}

#[test]
fn markdown_on_a_terminal() {
    let text = "# Title\n\nSome **bold** words and `code`.\n- item\n\n```rust\nfn main() {}\n```\n\u{1b}[31mred\u{7} <think> 2 * 3 * 4";
    let home = Home::says(&[text]);
    let mut t = home.chat(&["--no-show-timings"]);
    t.line("?");
    t.prompt();
    let screen = t.screen();
    let want = "> ?\nTitle\n\nSome bold words and code.\n\u{2022} item\n\n```rust\nfn main() {}\n```\n\\x1b[31mred\\x07 <think> 2 * 3 * 4\n>";
    assert!(screen.ends_with(want), "{screen}");
    assert_eq!(t.look("Title").map(|l| l.0), Some(true), "headings are bold");
    assert_eq!(t.look("bold").map(|l| l.0), Some(true));
    assert_eq!(t.look("words").map(|l| l.0), Some(false));
    assert_eq!(t.look("fn").map(|l| l.2), Some(vt100::Color::Idx(13)), "keywords have a colour");
    command(&mut t, "/set markdown off", &["markdown is off"]);
    t.line("/regen");
    t.expect("# Title");
    t.expect("**bold**");
    t.prompt();
    leave(t);

    // Reasoning is dimmed.
    let home = Home::says(&["<think>\nhm\n</think>\n\nYes"]);
    let mut t = home.chat(&[]);
    ask(&mut t, "?");
    assert_eq!((t.look("hm").map(|l| l.1), t.look("Yes").map(|l| l.1)), (Some(true), Some(false)));
    leave(t);
}

#[test]
fn thoughts_are_under_control() {
    let pieces = ["<think>", "\nhm,", " so\n", "</think>", "\n\n", "Yes"].map(str::to_owned).to_vec();
    let home = Home::new(&Script { answers: vec![pieces], endless: false });
    let pipe = |args: &[&str]| {
        let mut c = home.command(&[&["-p", "x", "-q"], args].concat());
        c.env_remove("CLICOLOR_FORCE");
        String::from_utf8(c.stdin(std::process::Stdio::null()).output().unwrap().stdout).unwrap()
    };
    for how in [&[][..], &["--reasoning", "hide"], &["--reasoning", "auto"]] {
        assert_eq!(pipe(how), "Yes\n", "{how:?}");
    }
    assert_eq!(pipe(&["--reasoning", "show"]), "<think>\nhm, so\n</think>\n\nYes\n");
    let json: serde_json::Value = serde_json::from_str(&pipe(&["--output-format", "json"])).unwrap();
    assert_eq!((&json["text"], &json["reasoning"]), (&"Yes".into(), &"hm, so".into()));
    // This model has nothing to say but its script, so that what comes after a mark that it did not write is nothing.
    for how in [&["--reasoning", "off"], &["--reasoning-budget", "0"]] {
        let json = pipe(&[&["--output-format", "json", "-n", "40"], &how[..]].concat());
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(json["reasoning"].is_null(), "{json}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&pipe(&["--output-format", "json", "-n", "40", "--reasoning-budget", "1"])).unwrap();
    assert!("hm, so".starts_with(json["reasoning"].as_str().unwrap()), "{json}");

    let mut t = home.chat(&["--no-show-timings"]);
    command(&mut t, "/think", &["is dimmed"]);
    command(&mut t, "/think hide", &["is left out"]);
    t.line("?");
    t.prompt();
    assert!(t.screen().ends_with("> ?\nYes\n>"), "{}", t.screen());
    command(&mut t, "/think 7", &["left out, and ends after 7 tokens"]);
    command(&mut t, "/think maybe", &["is not one of: show, dim"]);
    command(&mut t, "/think off", &["without thinking"]);
    leave(t);

    // Ctrl-\\ ends thoughts that would never end.
    let home = Home::new(&Script { endless: true, ..Script::saying(&["<think> so and so "]) });
    let mut t = home.chat(&["-n", "3000", "--markdown", "off", "--reasoning", "show"]);
    t.line("?");
    t.expect("<think> so and so ");
    t.send("\x1c");
    t.expect("wrote 3000");
    t.prompt();
    leave(t);
    assert!(home.saved().contains("</think>"), "the mark that ends them came");
}

#[test]
fn colours_where_they_are_wanted() {
    let home = Home::says(&["**b** \u{1b}[31m"]);
    let run = |args: &[&str], set: &[(&str, &str)]| {
        let mut c = home.command(args);
        for name in ["NO_COLOR", "CLICOLOR_FORCE"] {
            c.env_remove(name);
        }
        c.env("TERM", "xterm").envs(set.iter().copied());
        let (code, text) = {
            let t = Term::with(c, 80, 24);
            let seen = t.shared();
            let (code, _) = t.finish();
            (code, String::from_utf8(seen()).unwrap())
        };
        assert_eq!(code, 0, "{text}");
        text
    };
    let one = ["-p", "x", "-q"];
    assert!(run(&one, &[]).contains("\u{1b}[1mb"));
    // Without colours, marks stay; control characters are never obeyed.
    for set in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        assert!(run(&one, &[set]).starts_with("**b** \\x1b[31m"), "{set:?}");
    }
    assert!(run(&["-p", "x", "-q", "--simple-io"], &[]).starts_with("**b** \\x1b"));
    // R23: unless that is asked for.
    assert!(run(&["-p", "x", "-q", "--raw"], &[]).starts_with("**b** \u{1b}[31m"));
    // A pipe gets the answer as it is, or colours by force.
    let pipe = |set: &[(&str, &str)]| {
        let mut c = home.command(&one);
        c.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").envs(set.iter().copied());
        String::from_utf8(c.stdin(std::process::Stdio::null()).output().unwrap().stdout).unwrap()
    };
    assert_eq!(pipe(&[]), "**b** \u{1b}[31m\n");
    assert!(pipe(&[("CLICOLOR_FORCE", "1")]).contains("\u{1b}[1mb"));
}

#[test]
fn a_terminal_changes_its_size_in_an_answer() {
    let home = endless();
    let mut t = home.chat(&["-n", "3000"]);
    t.line("Go on.");
    for (columns, rows) in [(40, 10), (200, 60), (1, 1), (80, 24), (20, 5)] {
        std::thread::sleep(Duration::from_millis(30));
        t.resize(columns, rows);
    }
    t.resize(80, 24);
    t.expect("wrote 3000");
    t.prompt();
    ask(&mut t, "And now?");
    leave(t);
}

#[test]
fn dumb_terminals_are_read_line_by_line() {
    let home = Home::says(&["Yes."]);
    let mut c = home.command(&[]);
    c.env("TERM", "dumb");
    let mut t = Term::with(c, 80, 24);
    t.expect("> ");
    t.send("\"\"\"one\n");
    t.send("two\"\"\"\n");
    t.expect("wrote ");
    t.send("three \\\nfour\n");
    t.expect("wrote ");
    t.send(CTRL_D);
    let (code, text) = t.finish();
    assert!(code == 0 && !text.contains('\u{1b}'), "{text}");
    assert_eq!(home.asked(), ["one\ntwo", "three \nfour"]);
}

#[test]
fn ctrl_c_at_any_moment() {
    // In the load and at the prompt.
    let home = Home::smollm2();
    for wait in [0, 50, 100, 200, 400] {
        let mut t = Term::new(home.command(&[]), 80, 24);
        std::thread::sleep(Duration::from_millis(wait));
        let sent = Instant::now();
        t.send(CTRL_C);
        std::thread::sleep(Duration::from_millis(100));
        t.send(CTRL_C);
        let (code, text) = t.finish();
        println!("{wait} ms after the start: ended after {:?}", sent.elapsed());
        assert!(code == 130 || text.is_empty(), "{wait}: {code} {text}");
    }
    // In the prompt: the conversation is as it was.
    let mut t = home.chat(&["-n", "4"]);
    ask(&mut t, "Hello");
    std::fs::write(home.dir.path().join("long.txt"), "The sea is salty because of rivers. ".repeat(800)).unwrap();
    command(&mut t, "/read long.txt", &["goes with your next message"]);
    t.line("Why?");
    t.expect("reading the prompt");
    t.expect("%");
    t.expect("tokens ETA");
    let sent = Instant::now();
    t.send(CTRL_C);
    t.expect("stopped before an answer came");
    println!("in the prompt: {:?}", sent.elapsed());
    t.prompt();
    // The file waits for the next message still.
    command(&mut t, "/read -", &["no file goes with your next message"]);
    // What came is kept, and the model knows.
    command(&mut t, "/set predict -1", &["predict is -1"]);
    command(&mut t, "/set ignore-eos on", &["ignore-eos is on"]);
    let parts = home.parts();
    t.line("Tell me a long story.");
    let end = Instant::now() + PATIENCE;
    while home.parts() <= parts {
        assert!(Instant::now() < end, "no answer came: {}", t.text());
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Instant::now();
    t.send(CTRL_C);
    t.expect("what came is kept");
    println!("in an answer: {:?}", sent.elapsed());
    t.prompt();
    let last = home.saved().lines().last().unwrap().to_owned();
    assert!(last.contains("stopped this answer here") && last.contains("\"stop\":\"interrupted\""), "{last}");
    // At an empty prompt once is a hint, twice is the end.
    t.send(CTRL_C);
    t.expect("Ctrl-C again leaves");
    t.prompt();
    command(&mut t, "/stats", &["answers 2"]);
    t.send(CTRL_C);
    t.expect("Ctrl-C again leaves");
    t.send(CTRL_C);
    assert_eq!(t.end(), 130);
}

#[test]
fn sigterm_has_its_code() {
    let home = Home::says(&["Yes."]);
    let mut t = home.chat(&[]);
    t.signal(Signal::SIGTERM);
    let (code, _) = t.finish();
    assert_eq!(code, 143);
    let t = home.chat(&[]);
    drop(t);
}

#[test]
fn a_chat_that_was_killed_goes_on() {
    let words: String = (0..100).map(|i| format!("word{i} ")).collect();
    let home = Home::new(&Script { endless: true, ..Script::saying(&[&words, &words]) });
    let mut t = home.chat(&["-n", "20"]);
    ask(&mut t, "First?");
    ask(&mut t, "Second?");
    leave(t);
    for wait in [0, 20, 60, 150, 400, 1500, 2500] {
        let mut t = home.chat(&["--continue", "-n", "1000000000", "--context-full", "stop"]);
        t.line("Third?");
        std::thread::sleep(Duration::from_millis(wait));
        t.signal(Signal::SIGKILL);
        assert_eq!(t.end(), 137);
        let mut t = Term::new(home.command(&["--continue", "-n", "20"]), 80, 24);
        t.expect("questions");
        t.expect("Ctrl-D leaves");
        if t.text().contains("no answer: it is here to be asked again") {
            t.expect("> Third?");
            t.send("\u{15}");
        } else {
            t.prompt();
        }
        command(&mut t, "/context", &["2 you", "answer"]);
        if t.text().contains("3 you") {
            // What had come of the answer is there.
            assert!(t.text().contains("was not finished") || home.saved().contains("stopped"), "{}", t.text());
            command(&mut t, "/undo", &["2 left"]);
        }
        leave(t);
    }
}

#[test]
fn a_chat_goes_on_where_it_was_without_reading_anything_again() {
    let home = Home::smollm2();
    let cache = home.dir.path().join("chat.kv");
    let args = ["-c", "2048", "-n", "12", "--prompt-cache", cache.to_str().unwrap()];
    let mut t = home.chat(&args);
    ask(&mut t, "My name is Ada. What is the sea?");
    command(&mut t, "/set temp 0.25", &["temp is 0.25"]);
    leave(t);
    let mut more = args.to_vec();
    more.extend(["--continue", "--seed", "1"]);
    let mut t = home.chat(&more);
    let text = t.text();
    assert!(text.contains("1 question") && text.contains("My name is Ada."), "{text}");
    t.line("And who am I?");
    t.expect("read ");
    t.expect(" cached)");
    t.prompt();
    let text = t.text();
    let read: usize = text[text.rfind("read ").unwrap() + 5..].split(' ').next().unwrap().parse().unwrap();
    assert!(read < 20, "only what is new is read: {text}");
    // The command line counts more than what was set in the chat.
    command(&mut t, "/show parameters", &["temp 0", "seed 1"]);
    leave(t);
    // Without -m, and by its name.
    let name = std::fs::read_dir(home.chats()).unwrap().next().unwrap().unwrap().path();
    let name = name.file_stem().unwrap().to_str().unwrap().to_owned();
    let mut c = pp_run();
    c.args(["--continue", &name, "-n", "8", "-c", "2048"]);
    home.at_home(&mut c);
    let mut t = Term::new(c, 80, 24);
    t.expect("temp 0.25");
    t.expect("2 questions");
    t.prompt();
    ask(&mut t, "Bye.");
    command(&mut t, "/save ada", &["kept as ada"]);
    leave(t);
    assert!(home.chats().join("ada.jsonl").is_file());
    // Another chat, and back.
    let mut t = home.chat(&["-n", "4", "-c", "2048"]);
    ask(&mut t, "Hello.");
    command(&mut t, "/load ada", &["going on with ada: 3 questions"]);
    ask(&mut t, "Again.");
    leave(t);
    let text = std::fs::read_to_string(home.chats().join("ada.jsonl")).unwrap();
    assert!(text.contains("Again.") && !text.contains("Hello."));
}

#[test]
fn a_full_context_is_announced_and_the_user_chooses() {
    // In single letters, as which the texts come back too when they are read anew.
    let answer: Vec<String> = "these are some words of an answer ".repeat(4).chars().map(String::from).collect();
    let script = Script { answers: vec![answer; 12], endless: false };
    let start = |args: &[&str]| {
        let home = Home::new(&script);
        let mut all = vec!["-c", "1024", "-n", "200"];
        all.extend(args);
        let mut t = home.chat(&all);
        while !t.text().contains("% full") {
            ask(&mut t, "question");
        }
        assert!(t.text().contains("the context is 8"), "{}", t.text());
        (home, t)
    };
    let (home, mut t) = start(&[]);
    for choice in ["1", "", "nonsense"] {
        t.line(&"many letters ".repeat(20));
        t.expect("the context is full");
        t.expect("summarise: put a summary");
        t.prompt();
        t.line(choice);
        t.expect("/set context-full shift or summarise makes room");
        t.prompt();
    }
    t.line(&"many letters ".repeat(20));
    t.expect("the context is full");
    t.prompt();
    t.line("2");
    t.expect("exchanges are forgotten");
    t.expect("wrote ");
    t.prompt();
    command(&mut t, "/context", &["1 you", "2 you"]);
    leave(t);
    let saved = home.saved();
    let asked = home.asked();
    let kept = saved.rfind("\"type\":\"keep\"").unwrap();
    let after = saved[kept..].matches("\"role\":\"user\"").count();
    assert!(after >= 2 && asked[asked.len() - after] == "question", "the first exchange stays: {saved}");

    let (home, mut t) = start(&["--context-full", "shift"]);
    t.line(&"many letters ".repeat(20));
    t.expect("exchanges are forgotten");
    t.expect("wrote ");
    t.prompt();
    leave(t);
    drop(home);

    let (home, mut t) = start(&[]);
    command(&mut t, "/set context-full summarise", &["context-full is summarise"]);
    t.line(&"many letters ".repeat(20));
    t.expect("become a summary");
    t.expect("wrote ");
    t.prompt();
    command(&mut t, "/show system", &["What was said before, in short:"]);
    leave(t);
    drop(home);

    // One message that cannot fit at all.
    let home = Home::says(&["Yes."]);
    let mut t = home.chat(&["-c", "96"]);
    t.line(&"many letters ".repeat(30));
    t.expect("shorten it");
    t.prompt();
    ask(&mut t, "short");
    leave(t);
}

#[test]
fn a_configuration_sets_what_flags_do() {
    let home = Home::says(&["Yes."]);
    let config = home.dir.path().join(".config/pp-run/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let model = home.model.display();
    std::fs::write(&config, format!("model = \"{model}\"\ntop_k = 3\nno-save = true\ncontext-full = \"shift\"\n"))
        .unwrap();
    let mut c = pp_run();
    home.at_home(&mut c);
    c.env("LLAMA_ARG_TOP_K", "4").env("PP_ARG_MIN_P", "0.5");
    let mut t = Term::new(c, 80, 24);
    t.prompt();
    command(&mut t, "/set", &["top-k 4", "min-p 0.5", "context-full shift"]);
    ask(&mut t, "Hello?");
    leave(t);
    assert!(!home.chats().exists());
}

#[test]
fn pruning_begins_and_ends_with_a_turn() {
    let home = Home::smollm2();
    let mut t = home.chat(&["-c", "2048", "-n", "8", "--prune", "0.1", "--prune-min-tokens", "2"]);
    command(&mut t, "/prune", &["10% of the weights"]);
    command(&mut t, "/prune 0.2", &["20% of the weights"]);
    t.line(&"Why is the sea salty? ".repeat(8));
    t.expect("kept 8");
    t.prompt();
    command(
        &mut t,
        "/map",
        &["0 heads \u{2588}\u{2588}\u{2588}\u{2588}\u{2588}\u{2588}\u{2588}\u{2588}\u{2588} 9/9", "0/1536"],
    );
    command(&mut t, "/stats", &["pruning probe"]);
    command(&mut t, "/prune 0.5", &["50% of the weights"]);
    t.line(&"And why is the sky blue? ".repeat(8));
    t.expect("kept 5");
    t.prompt();
    command(&mut t, "/prune off", &["nothing is left out"]);
    ask(&mut t, "Thank you.");
    let text = t.text();
    let last = &text[text.rfind("wrote ").unwrap()..];
    assert!(!last.contains("kept"), "{last}");
    leave(t);
    assert!(home.saved().contains("\"prune\":\"0.5: "));
}

#[test]
fn a_prompt_on_a_terminal_is_answered_once() {
    let home = Home::says(&["Yes."]);
    let (code, text) = Term::new(home.command(&["-p", "Say yes."]), 80, 24).finish();
    assert!(code == 0 && text.contains("Yes.") && text.contains("generated "), "{text}");
    assert!(!home.chats().exists(), "only chats are kept");
    // With -cnv it begins a chat.
    let mut t = Term::new(home.command(&["-cnv", "-p", "/say yes"]), 80, 24);
    t.expect("Yes.");
    t.prompt();
    leave(t);
    assert_eq!(home.asked(), ["/say yes"]);
}

#[test]
fn a_broken_template_says_what_to_do() {
    let home = Home::says(&["Yes."]);
    let mut t = home.chat(&["--chat-template", "{{ raise_exception('broken') }}"]);
    command(&mut t, "Hello", &["--chat-template NAME"]);
    leave(t);
}

#[test]
fn a_chat_that_cannot_be_kept_goes_on() {
    let home = Home::says(&["Yes."]);
    let data = home.dir.path().join(".local/share");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("pp-run"), "in the way").unwrap();
    let mut t = home.chat(&[]);
    t.line("Hello?");
    t.expect("this chat is not kept at present");
    t.expect("wrote ");
    t.prompt();
    std::fs::remove_file(data.join("pp-run")).unwrap();
    t.line("Again?");
    t.expect("this chat is kept again");
    t.prompt();
    leave(t);
    assert_eq!(home.asked(), ["Hello?", "Again?"]);
}
