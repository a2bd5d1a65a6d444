//! The chat, on a pseudo-terminal.
#![cfg(unix)]

mod common;

use std::process::Command;
use std::time::Duration;

use common::smollm2;
use expectrl::process::unix::WaitStatus;
use expectrl::session::OsSession;
use expectrl::{ControlCode, Eof, Expect, Regex, Session};

struct Chat {
    session: OsSession,
    state: tempfile::TempDir,
}

fn chat(args: &[&str]) -> Chat {
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pp-run"));
    command.args(["-m", smollm2().to_str().unwrap(), "--temp", "0", "-c", "2048"]).args(args);
    // One thread: tests run side by side, and threads that wait for each other by spinning starve.
    command.env("PP_ARG_THREADS", "1").env("XDG_STATE_HOME", state.path()).env("TERM", "xterm").env_remove("NO_COLOR");
    let mut session = Session::spawn(command).unwrap();
    session.set_expect_timeout(Some(Duration::from_secs(120)));
    Chat { session, state }
}

impl Chat {
    #[track_caller]
    fn expect(&mut self, what: &str) {
        self.session.expect(what).unwrap_or_else(|e| panic!("'{what}': {e}"));
    }

    fn type_line(&mut self, line: &str) {
        // Enter is a carriage return on a terminal in raw mode.
        self.session.send(format!("{line}\r")).unwrap();
    }

    #[track_caller]
    fn ends_with(mut self, code: i32) -> tempfile::TempDir {
        self.session.expect(Eof).unwrap();
        match self.session.get_process().wait().unwrap() {
            WaitStatus::Exited(_, got) => assert_eq!(got, code),
            other => panic!("{other:?}"),
        }
        self.state
    }
}

#[test]
fn a_conversation_with_commands_and_history() {
    let mut c = chat(&["-n", "16"]);
    c.expect("/help lists commands");
    c.expect("> ");
    c.type_line("My name is Ada.");
    c.expect("generated ");
    c.expect("> ");
    c.type_line("What is my name?");
    // Only what is new is processed.
    c.expect(" cached)");
    c.expect("> ");
    c.type_line("/regen");
    c.expect("generated ");
    c.type_line("/hepl");
    c.expect("did you mean '/help'");
    c.type_line("/help");
    c.expect("Ctrl-C");
    c.type_line("/clear");
    c.expect("forgotten");
    c.type_line("/regen");
    c.expect("no answer to make again");
    c.session.send(ControlCode::EndOfTransmission).unwrap();
    let state = c.ends_with(0);

    use std::os::unix::fs::PermissionsExt;
    let history = state.path().join("pp-run/history");
    let text = std::fs::read_to_string(&history).unwrap();
    assert!(text.contains("My name is Ada.") && text.contains("/clear"), "{text}");
    assert_eq!(std::fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn pruning_begins_and_ends_with_a_turn() {
    let mut c = chat(&["-n", "8", "--prune", "0.1", "--prune-min-tokens", "2"]);
    c.expect("> ");
    c.type_line("/prune");
    c.expect("10% of heads and channels");
    c.type_line("/prune 0.2");
    c.expect("20% of heads and channels");
    c.type_line("Why is the sea salty?");
    c.expect("kept 84.1%");
    c.expect("reduced weights");
    c.type_line("/prune 2");
    c.expect("wants a number from 0 to 0.8");
    c.type_line("/prune 0.5");
    c.expect("50% of heads and channels");
    c.type_line("And why is the sky blue?");
    c.expect("kept 54.1%");
    c.type_line("/prune off");
    c.expect("nothing is left out");
    c.type_line("Thank you.");
    // Nothing about pruning in between.
    c.session.expect(Regex(r"/2048 \| (peak memory [0-9.]+ MiB \| )?seed")).unwrap();
    c.type_line("/exit");
    c.ends_with(0);
}

#[test]
fn ctrl_c_stops_an_answer_and_twice_leaves() {
    let mut c = chat(&["--ignore-eos"]);
    c.expect("> ");
    c.type_line("Tell me a long story about a ship.");
    c.expect(" was ");
    c.session.send(ControlCode::EndOfText).unwrap();
    c.expect("stopped; what came is kept");
    c.expect("> ");
    c.session.send(ControlCode::EndOfText).unwrap();
    c.expect("Ctrl-C again leaves");
    c.expect("> ");
    c.session.send(ControlCode::EndOfText).unwrap();
    c.ends_with(130);
}

#[test]
fn several_lines_make_one_message_and_sigterm_has_its_code() {
    let mut c = chat(&["-n", "4"]);
    c.expect("> ");
    c.type_line("\"\"\"One line");
    c.expect("... ");
    c.type_line("and another\"\"\"");
    c.expect("generated 4 tokens");
    c.expect("> ");
    let pid = c.session.get_process().pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    c.ends_with(143);
}

#[test]
fn a_full_context_is_announced() {
    let mut c = chat(&["-c", "96", "-n", "4"]);
    c.expect("> ");
    c.type_line(&"many words again and ".repeat(40));
    c.expect("the context is full");
    c.expect("/clear");
    c.type_line("Short.");
    c.expect("generated 4 tokens");
    c.type_line("/exit");
    c.ends_with(0);
}

#[test]
fn a_prompt_on_a_terminal_is_answered_once() {
    let mut c = chat(&["-p", "Say hello.", "-n", "4"]);
    c.expect("generated 4 tokens");
    c.ends_with(0);
}

#[test]
fn a_model_without_a_template_says_what_to_do() {
    let mut c = chat(&["--chat-template", "{{ raise_exception('broken') }}"]);
    c.expect("> ");
    c.type_line("Hello");
    c.expect("--chat-template NAME");
    c.type_line("/exit");
    c.ends_with(0);
}
