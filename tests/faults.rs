//! Faults of the system and of its user while the program runs: an exit code, one line on stderr, and nothing of the user's lost.
//!
//! Cases of the project's list that are tested elsewhere, or not:
//! - R07 (killed by the control group's limit), R14 (a processor without AVX2: all is compiled for the one it is built on, and the kernels
//!   choose at run time): nothing a test could show. R10: tests/hostile.rs (D10) and src/sampler.rs. R11: tests/prune.rs. R12:
//!   tests/prune.rs (short prompts). R22: tests/generate.rs. R24: tests/chat.rs. R33: here and in tests/terminal.rs. R34: here. R36:
//!   tests/terminal.rs (twice leaves). R49: nothing reads these. R50: tests/soak.
//! - R40, R42: tests/prompt_cache.rs. R41 holds for what is written: answers, dumps, traces, calibrations, prompt caches. R45, R46: it is
//!   written under a name with the process's number and renamed: the last one wins, whole.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::forge::Forge;
use common::term::Term;
use common::{apart, check, finished, pp_run, shim, smollm2, started};

fn program() -> Command {
    let mut command = pp_run();
    command.env("PP_ARG_THREADS", "1").stdin(Stdio::null());
    command
}

/// A folder with a tiny model in it.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    Forge::smallest().write(&model);
    (dir, model)
}

#[test]
fn limits_and_odd_values() {
    let (dir, model) = folder();
    let model = model.to_str().unwrap();
    let long = "a ".repeat(3000);
    let rows: &[(&str, &[&str], i32, &str)] = &[
        ("R01", &["-p", &long], 65, "tokens, but the context holds 2048"),
        ("R03-0", &["-p", "x", "-c", "0"], 0, ""),
        ("R03-1", &["-p", "xyz", "-c", "1"], 65, "but the context holds 1"),
        ("R03-negative", &["-p", "x", "-c", "-1"], 2, "-c is -1"),
        ("R03-31", &["-p", "x", "-c", "2147483648"], 2, "-c is 2147483648"),
        ("R03-63", &["-p", "x", "-c", "9223372036854775808"], 2, "too large"),
        ("R04", &["-p", "x", "-c", "4096"], 0, "trained"),
        ("R05", &["-p", "x", "-c", "1000000000"], 71, "memory are available"),
        ("R08-empty", &["-p", ""], 0, ""),
        ("R08-space", &["-p", "   "], 0, ""),
        ("R08-mark", &["-p", "\u{feff}"], 0, ""),
        ("R08-special", &["-p", "<s></s>"], 0, ""),
        ("R09-none", &["-p", "x", "-n", "0"], 0, ""),
        ("R09-many", &["-p", "x", "-n", "9223372036854775808"], 2, "too large"),
        ("R09-cold", &["-p", "x", "--temp", "-1"], 0, ""),
        ("R09-NaN", &["-p", "x", "--temp", "nan"], 2, "--temp is NaN"),
        ("R09-inf", &["-p", "x", "--temp", "inf"], 2, "--temp is inf"),
        ("R09-k", &["-p", "x", "--top-k", "0"], 0, ""),
        ("R09-huge", &["-p", "x", "--top-k", "2147483647"], 0, ""),
        ("R09-p", &["-p", "x", "--top-p", "0"], 0, ""),
        ("R09-p NaN", &["-p", "x", "--top-p", "nan"], 2, "--top-p is NaN"),
        ("R09-min-p", &["-p", "x", "--min-p", "2"], 2, "--min-p is 2"),
        ("R09-seed", &["-p", "x", "--seed", "x"], 2, "--seed"),
        ("R13-0", &["-p", "x", "-t", "0"], 0, ""),
        ("R13-many", &["-p", "x", "-t", "1000000"], 2, "-t is 1000000"),
        ("R13", &["-p", "x", "-t", "64"], 0, ""),
        ("R20-stdin", &["-f", "/nonexistent"], 66, "no such file"),
    ];
    for (id, args, code, part) in rows {
        let args = [&["-m", model, "-n", "1"], *args].concat();
        check(id, &finished(started(program().args(args))), *code, part);
    }
    // R02: what cannot fit is refused before it is read as tokens; what can is read in linear time.
    let text = dir.path().join("long.txt");
    for (letter, size) in [("a", 10_000_000), (" ", 10_000_000), ("\u{1f999}", 1_000_000)] {
        fs::write(&text, letter.repeat(size)).unwrap();
        let output = finished(started(program().args(["-m", model, "-n", "1", "-f"]).arg(&text)));
        check("R02", &output, 65, "all that the context holds");
    }
    // Sparse: two GiB of zeros.
    fs::File::create(&text).unwrap().set_len(2 << 30).unwrap();
    check(
        "R02-2GiB",
        &finished(started(program().args(["-m", model, "-n", "1", "-f"]).arg(&text))),
        65,
        "is longer than",
    );
}

#[test]
fn texts_that_are_not_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, model) = folder();
    let file = dir.path().join("bad.txt");
    for (id, bytes, at) in [
        ("R20", b"ab\xffcd".as_slice(), 2),
        ("R21-overlong", b"\xc0\x80", 0),
        ("R21-surrogate", b"x\xed\xa0\x80", 1),
        ("R21-cut", b"xy\xf0\x9f\xa6", 2),
    ] {
        fs::write(&file, bytes).unwrap();
        let base = || {
            let mut command = program();
            command.arg("-m").arg(&model).args(["-n", "1"]);
            command
        };
        let ways: [(&str, &dyn Fn() -> Command); 3] = [
            ("-f", &|| {
                let mut c = base();
                c.arg("-f").arg(&file);
                c
            }),
            ("-p", &|| {
                let mut c = base();
                c.arg("-p").arg(std::ffi::OsStr::from_bytes(bytes));
                c
            }),
            ("stdin", &|| {
                let mut c = base();
                c.stdin(fs::File::open(&file).unwrap());
                c
            }),
        ];
        for (way, command) in ways {
            check(&format!("{id} {way}"), &finished(started(&mut command())), 0, "is replaced by U+FFFD");
            let strict = finished(started(command().arg("--strict-utf8")));
            check(&format!("{id} {way} strict"), &strict, 65, &format!("(at byte {at})"));
        }
    }
    fs::write(&file, b"a\0b").unwrap();
    check("R21-NUL", &finished(started(program().arg("-m").arg(&model).args(["-n", "1", "-f"]).arg(&file))), 0, "");
}

/// Closes the files that whoever started the tests left open: limits would count them.
const CLOSE: &str = "for f in /proc/$$/fd/*; do n=${f##*/}; [ $n -gt 2 ] && eval \"exec $n>&-\"; done; ";

/// Through a shell, which limits and closes what the program gets.
fn shell(model: &Path, before: &str, after: &str) -> Output {
    let line =
        format!("{CLOSE}{before}exec {} -m {} -p hi -n 1 -q {after}", env!("CARGO_BIN_EXE_pp-run"), model.display());
    finished(started(apart(&mut Command::new("bash")).args(["-c", &line]).stdin(Stdio::null())))
}

#[test]
fn little_memory_few_files_and_closed_streams() {
    let (_dir, model) = folder();
    for kib in [60_000, 100_000, 150_000, 200_000, 300_000, 400_000, 500_000, 700_000, 900_000] {
        let output = shell(&smollm2(), &format!("ulimit -v {kib}; "), "");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        assert!(code == Some(0) || code == Some(71), "R06 D20 {kib}: {:?} {stderr}", output.status);
        assert!(stderr.lines().count() == usize::from(code != Some(0)), "R06 {kib}: {stderr}");
    }
    // Fewer, and the loader finds no libraries: the program never begins.
    for files in [4, 5, 6, 7, 8] {
        let output = shell(&model, &format!("ulimit -n {files}; "), "");
        let code = output.status.code();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(code, Some(0 | 1 | 66 | 71 | 74)), "D21 {files}: {code:?} {stderr}");
        assert!(stderr.lines().count() == usize::from(code != Some(0)), "D21 {files}: {stderr}");
    }
    // A limit counts files that are left open, too.
    for open in ["", "exec 3</dev/null 4</dev/null 9</dev/null 77</dev/null; "] {
        let line = format!("{open}{CLOSE}ls /proc/$$/fd; :");
        let left = Command::new("bash").args(["-c", &line]).stdin(Stdio::null()).output().unwrap();
        let left = String::from_utf8(left.stdout).unwrap();
        assert!(left.split_whitespace().all(|n| n.parse::<u32>().unwrap() <= 2 || n == "255"), "{open}: {left}");
    }
    for (closed, code) in [("<&-", 0), (">&-", 74), ("2>&-", 0), ("<&- >&- 2>&-", 74)] {
        let output = shell(&model, "", closed);
        assert_eq!(output.status.code(), Some(code), "R30 {closed}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // What the program opens must not become its standard output.
    let before = fs::read(&model).unwrap();
    shell(&model, "", ">&- 2>&-");
    assert!(before == fs::read(&model).unwrap(), "R30: the model is as it was");
    for (id, environment) in [
        ("R48-C", "env -i LC_ALL=C"),
        ("R48-none", "env -i LC_ALL=xx TMPDIR=/nonexistent"),
        ("R13-one", "taskset -c 0 env"),
        ("R49", "env RUST_BACKTRACE=full"),
    ] {
        let line = format!("{environment} {} -m {} -p hi -n 1 -q", env!("CARGO_BIN_EXE_pp-run"), model.display());
        let output = finished(started(apart(&mut Command::new("bash")).args(["-c", &line]).stdin(Stdio::null())));
        check(id, &output, 0, "");
    }
}

#[test]
fn the_nth_call_fails() {
    let (dir, model) = folder();
    let shim = shim(dir.path());
    let (text, mark) = (dir.path().join("prompt.txt"), dir.path().join("mark"));
    fs::write(&text, "hello").unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let saved = out.join("saved.txt");
    let mut reached = 0;
    for (call, error) in [
        ("open", 13),
        ("open", 24),
        ("read", 5),
        ("mmap", 12),
        ("write", 28),
        ("write", 32),
        ("fsync", 5),
        ("rename", 5),
    ] {
        for n in 1.. {
            assert!(n < 500, "{call} has no end");
            let _ = fs::remove_file(&mark);
            fs::write(&saved, "old").unwrap();
            let mut command = program();
            command.arg("-m").arg(&model).arg("-f").arg(&text).args(["-n", "4", "--temp", "0", "-o"]).arg(&saved);
            command.env("LD_PRELOAD", &shim).env("FAULT_CALL", call).env("FAULT_N", n.to_string());
            command.env("FAULT_ERRNO", error.to_string()).env("FAULT_MARK", &mark);
            let output = finished(started(&mut command));
            let code = output.status.code();
            let what =
                format!("{call} {n}, error {error}: {:?} {}", output.status, String::from_utf8_lossy(&output.stderr));
            assert!(matches!(code, Some(0 | 1 | 65 | 66 | 71 | 73 | 74)), "{what}");
            // What is on stderr may be what could not be written.
            let quiet = call == "write" || output.stderr.iter().filter(|&&b| b == b'\n').count() > 0 || code == Some(0);
            assert!(quiet, "{what}");
            let text = fs::read_to_string(&saved).unwrap();
            assert!(
                text == "old" || text.starts_with("User:\nhello\n\nAssistant:\n") && text.ends_with("\n\n"),
                "{what}: {text}"
            );
            assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "{what}: something is left");
            if !mark.exists() {
                break;
            }
            reached += 1;
        }
    }
    assert!(reached > 30, "{reached} calls");
    println!("{reached} calls failed");
}

#[test]
fn files_that_cannot_be_written() {
    let (dir, model) = folder();
    let run = |out: &Path| {
        finished(started(program().arg("-m").arg(&model).args(["-p", "x", "-n", "1", "-q", "-o"]).arg(out)))
    };
    let code = |out: &Path| run(out).status.code();
    assert_eq!(code(Path::new("/nonexistent/saved.txt")), Some(73), "R42-folder");
    let folder = dir.path().join("folder");
    fs::create_dir_all(folder.join("x")).unwrap();
    assert_eq!(code(&folder), Some(73), "R42-directory");
    if Path::new("/dev/full").exists() {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = program();
        command.arg("-m").arg(&model).args(["-p", "x", "-n", "1", "-q"]);
        let output = command.stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(74),
            "stdout on a full disk: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// A copy of the real model, which takes long enough to answer.
fn copied(dir: &Path) -> PathBuf {
    let model = dir.join("copy.gguf");
    fs::copy(smollm2(), &model).unwrap();
    model
}

/// A process that has begun to answer.
fn answering(model: &Path) -> Child {
    let mut command = program();
    let args = [
        "-p",
        "Count to a thousand.",
        "-n",
        "1500",
        "--temp",
        "0",
        "--ignore-eos",
        "-q",
        "--kernels",
        "native",
        "-c",
        "2048",
    ];
    let mut child = started(command.arg("-m").arg(model).args(args));
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    child
}

#[test]
fn models_that_change_while_they_are_in_use() {
    let dir = tempfile::tempdir().unwrap();
    // D03: cut short during an answer.
    let model = copied(dir.path());
    let child = answering(&model);
    fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(10_000_000).unwrap();
    let output = finished(child);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(74), 1), "D03: {stderr}");
    assert!(stderr.contains("cut short"), "D03: {stderr}");
    // D05, D06: replaced and deleted, it is still there for who has it open.
    for replaced in [true, false] {
        let model = copied(dir.path());
        let mut child = answering(&model);
        match replaced {
            true => {
                let other = dir.path().join("other");
                fs::write(&other, "no model").unwrap();
                fs::rename(&other, &model).unwrap();
            }
            false => fs::remove_file(&model).unwrap(),
        }
        let mut some = [0; 64];
        child.stdout.as_mut().unwrap().read_exact(&mut some).unwrap();
        child.kill().unwrap();
        assert!(finished(child).stderr.is_empty(), "D05 D06");
    }
    // D04: written to between two turns of a chat.
    let (dir, model) = folder();
    let mut command = pp_run();
    command.arg("-m").arg(&model).args(["--chat-template", "chatml", "-n", "4", "--simple-io"]);
    command.env("PP_ARG_THREADS", "1").env("PP_ARG_NO_HISTORY", "1").env("PP_ARG_NO_SAVE", "1").current_dir(dir.path());
    let mut chat = Term::new(command, 80, 24);
    chat.prompt();
    chat.line("hello");
    chat.expect("wrote ");
    chat.prompt();
    fs::OpenOptions::new().append(true).open(&model).unwrap().write_all(b"more").unwrap();
    chat.line("again");
    chat.expect("changed while it was in use");
    assert_eq!(chat.end(), 74, "D04");
    // R47: a download that is not whole.
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let output = finished(started(program().arg("-m").arg(&model).args(["-p", "x"])));
    check("R47", &output, 65, "truncated");
}

#[test]
fn whoever_is_to_outlive_the_terminal_does() {
    let (_dir, model) = folder();
    let run = format!(
        "trap '' HUP; exec {} -m {} -p x -n 300 --ignore-eos -q",
        env!("CARGO_BIN_EXE_pp-run"),
        model.display()
    );
    let mut child = started(apart(&mut Command::new("bash")).args(["-c", &run]).stdin(Stdio::null()));
    // The answer has begun.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
    check("nohup", &finished(child), 0, "");
}

/// R13: as few threads as a user may have. Root may have any number, so it is somebody else who runs the program.
#[test]
fn few_threads() {
    let (dir, model) = folder();
    let program = dir.path().join("pp-run");
    // Not by this process: what another test starts meanwhile would hold the file open for writing, and the system runs no such file.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_pp-run")).arg(&program).status().unwrap();
    assert!(copied.success());
    for path in [dir.path(), &program, &model] {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let root = rustix::process::geteuid().is_root();
    let nobody = if root { "setpriv --reuid 65534 --regid 65534 --clear-groups" } else { "" };
    let mut failed = 0;
    for threads in 1..=8 {
        let run = format!("ulimit -u {threads}; exec {} -m {} -p x -n 2 -t 4 -q", program.display(), model.display());
        let line = format!("{nobody} bash -c '{run}'");
        let output = finished(started(
            Command::new("bash").args(["-c", &line]).env("HOME", "/nonexistent").stdin(Stdio::null()),
        ));
        match output.status.code() {
            Some(0) => {}
            _ => {
                check(&format!("R13 {threads}"), &output, 71, "thread");
                failed += 1;
            }
        }
    }
    println!("{failed} of 8 limits were too low");
    assert!(failed > 0 || !root);
}

#[test]
fn two_processes_share_a_model() {
    let (_dir, model) = folder();
    let run = || started(program().arg("-m").arg(&model).args(["-p", "x", "-n", "20", "--temp", "0", "-q"]));
    let both = [run(), run()].map(finished);
    assert!(both.iter().all(|o| o.status.success()) && both[0].stdout == both[1].stdout, "R44");
}

/// Whether a signal is in a mask of a process: `SigIgn` has the signals that it ignores, `SigCgt` those that it catches.
fn is_in_mask(process: &str, mask: &str, signal: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let digits = status.lines().find_map(|l| l.strip_prefix(mask)?.strip_prefix(':')).unwrap();
    u64::from_str_radix(digits.trim(), 16).unwrap() >> (signal - 1) & 1 == 1
}

#[test]
fn signals_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    fs::write(&text, "The sea is salty because of rivers. ".repeat(150)).unwrap();
    // What these tests were started to ignore (by nohup, or in the background of a script), so does what they start.
    let ignored = |signal: u32| is_in_mask("self", "SigIgn", signal);
    let hangup = if ignored(1) { 0 } else { 143 };
    for (signal, number, code) in [("INT", 2, 130), ("TERM", 15, 143), ("HUP", 1, hangup)] {
        for wait in [0, 10, 30, 60, 100, 200, 400, 800] {
            let mut command = program();
            command.arg("-m").arg(smollm2()).args(["-n", "400", "--ignore-eos", "-q", "-c", "4096", "-f"]).arg(&text);
            let mut child = started(&mut command);
            // So that what is printed never fills the pipe.
            let mut out = child.stdout.take().unwrap();
            let reader = std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
            std::thread::sleep(Duration::from_millis(wait));
            let process = child.id().to_string();
            let caught = is_in_mask(&process, "SigCgt", number);
            let sent = Instant::now();
            Command::new("kill").args([&format!("-{signal}"), &process]).status().unwrap();
            let output = finished(child);
            reader.join().unwrap().unwrap();
            // A signal that the program did not catch yet ends it as it ends any process, or is ignored.
            let uncaught = ignored(number).then_some(0);
            let ended = output.status.code();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(
                ended == Some(code) || (!caught && ended == uncaught),
                "{signal} after {wait} ms: {:?} {stderr}",
                output.status
            );
            println!("{signal} after {wait} ms: ended in {:?}", sent.elapsed());
        }
    }
}

#[test]
fn histories_that_are_no_histories() {
    let (_dir, model) = folder();
    let chat = |state: &Path| {
        let mut command = pp_run();
        command.arg("-m").arg(&model).args(["--chat-template", "chatml", "-n", "2", "--simple-io"]);
        command.env("PP_ARG_THREADS", "1").env("PP_ARG_NO_SAVE", "1").env("XDG_STATE_HOME", state).env("TERM", "dumb");
        Term::with(command, 80, 24)
    };
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("pp-run/history");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let binary: Vec<u8> = (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let cases: [(&str, &dyn Fn()); 3] = [
        ("R43-binary", &|| fs::write(&file, &binary).unwrap()),
        ("R43-huge", &|| {
            fs::remove_file(&file).unwrap();
            fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
        }),
        ("R43-directory", &|| {
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
        }),
    ];
    for (id, make) in cases {
        make();
        let mut chat = chat(state.path());
        println!("{id}");
        chat.expect("keeps none");
        chat.prompt();
        chat.line("hi");
        chat.expect("wrote ");
        chat.line("/exit");
        assert_eq!(chat.end(), 0, "{id}");
    }
}

/// R31, R32, R35: a chat under a shell, on terminals of all widths, stopped, continued and ended in each way.
#[test]
fn terminals_are_left_as_they_were() {
    let (_dir, model) = folder();
    let mut command = Command::new("bash");
    apart(&mut command).args(["--norc", "--noprofile", "-i"]).env("PS1", "ready$ ").env("PP_ARG_THREADS", "1");
    command.env("PP_ARG_NO_HISTORY", "1").env("PP_ARG_NO_SAVE", "1").env_remove("PROMPT_COMMAND");
    let mut shell = Term::new(command, 80, 24);
    let chat = format!("{} -m {} --chat-template chatml --ignore-eos", env!("CARGO_BIN_EXE_pp-run"), model.display());
    shell.expect("ready$ ");
    shell.send(&format!("stty -g >{}.before\r", model.display()));
    shell.expect("ready$ ");
    for (columns, end) in [(80, "\u{4}"), (1, "/exit\r"), (20, "\u{3}\u{3}"), (200, "kill")] {
        shell.send(&format!("{chat} -n 30\r"));
        shell.expect("Ctrl-D leaves");
        shell.send("\u{1a}");
        shell.expect("Stopped");
        shell.expect("ready$ ");
        shell.send("fg\r");
        shell.expect("pp-run -m");
        shell.keeps_enter();
        shell.resize(columns, 10);
        shell.send("hello\r");
        shell.expect("wrote");
        shell.resize(80, 24);
        std::thread::sleep(Duration::from_millis(200));
        if end == "kill" {
            shell.send("\u{1a}");
            shell.expect("Stopped");
            shell.expect("ready$ ");
            shell.send("kill %1; fg\r");
        } else {
            for (i, key) in end.split_inclusive('\u{3}').enumerate() {
                // Nobody presses two keys at once.
                std::thread::sleep(Duration::from_millis(200 * i as u64));
                shell.send(key);
            }
        }
        shell.expect("ready$ ");
        shell.send(&format!("stty -g | cmp - {}.before && echo sa''me\r", model.display()));
        shell.expect("same");
        shell.expect("ready$ ");
    }
    // Without anybody to chat with.
    let output = finished(started(program().arg("-m").arg(&model)));
    check("R31", &output, 2, "no prompt");
}

/// An end that no destructor sees: the terminal of a chat echoes again what is typed.
#[test]
fn a_terminal_echoes_again_after_an_end_at_once() {
    let (dir, model) = folder();
    let bomb = dir.path().join("bomb");
    let double =
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    fs::write(&bomb, double).unwrap();
    let mut command = Command::new("bash");
    apart(&mut command).args(["--norc", "--noprofile", "-i"]).env("PS1", "ready$ ").env("PP_ARG_THREADS", "1");
    command.env("PP_ARG_NO_HISTORY", "1").env("PP_ARG_NO_SAVE", "1").env_remove("PROMPT_COMMAND");
    let mut shell = Term::new(command, 200, 24);
    let chat = |model: &Path, more: &str| {
        format!("{} -m {} --chat-template chatml -n 4 {more}", env!("CARGO_BIN_EXE_pp-run"), model.display())
    };
    shell.expect("ready$ ");
    shell.send(&format!("stty -g >{}.before\r", model.display()));
    shell.expect("ready$ ");
    let same = |shell: &mut Term| {
        shell.send(&format!("stty -g | cmp - {}.before && echo sa''me\r", model.display()));
        shell.expect("same");
        shell.expect("ready$ ");
    };
    // Memory ends while a model is loaded, at one place or another. Where it does not, the chat finds the line that leaves it.
    for kib in [200_000, 250_000, 300_000, 350_000, 400_000] {
        shell.send(&format!("(ulimit -v {kib}; {}); echo en''ded $?\r", chat(&smollm2(), "")));
        shell.send("/exit\r");
        shell.expect("ended ");
        shell.send("echo he''re\r");
        shell.expect("here");
        shell.expect("ready$ ");
        same(&mut shell);
    }
    // A template takes more than it may.
    shell.send(&format!(
        "{}; echo en''ded $?\r",
        chat(&model, "").replace("template chatml", &format!("template-file {}", bomb.display()))
    ));
    shell.expect("Ctrl-D leaves");
    shell.send("hello\r");
    shell.expect("ended 65");
    shell.expect("ready$ ");
    same(&mut shell);
    // The model is cut short behind what is read of it before it is used.
    shell.send(&format!("{}; echo en''ded $?\r", chat(&model, "")));
    shell.expect("Ctrl-D leaves");
    fs::OpenOptions::new().write(true).open(&model).unwrap().set_len(4096).unwrap();
    shell.send("hello\r");
    shell.expect("ended 74");
    shell.expect("ready$ ");
    same(&mut shell);
}
