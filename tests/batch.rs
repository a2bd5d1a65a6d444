//! `pp-run batch`, by the program itself: answers are what they are alone, rows that fail, and runs that go on.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::finished;
use common::forge::{Arch, Forge};
use ggml::Type;
use serde_json::{Value, json};

/// A folder with a model whose context is 2048 tokens.
struct Home {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Home {
    fn new(forge: &Forge) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model.gguf");
        forge.write(&model);
        Home { dir, model }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pp-run"));
        command.args(args).arg("-m").arg(&self.model).args(["--chat-template", "chatml", "-ub", "32", "--seed", "5"]);
        command.env("PP_ARG_THREADS", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Answers rows into a file of this name.
    fn batch(&self, rows: &[Value], output: &str, args: &[&str]) -> Output {
        let input = self.file("rows.jsonl");
        fs::write(&input, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
        let mut command = self.program(&["batch"]);
        command.arg("-i").arg(input).arg("-o").arg(self.file(output)).args(args);
        finished(command.spawn().unwrap())
    }

    /// The answer of `pp-run -p`.
    fn alone(&self, prompt: &str, args: &[&str]) -> Value {
        let mut command = self.program(&["-p", prompt, "--output-format", "json", "--no-stdin"]);
        let output = finished(command.args(args).spawn().unwrap());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// The lines of a file by their ids, without what differs from run to run.
#[track_caller]
fn answers(path: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let by_id: BTreeMap<String, Value> = lines.iter().map(|l| (l["id"].to_string(), same(l))).collect();
    assert_eq!(by_id.len(), lines.len(), "each row once: {text}");
    by_id
}

/// What of an answer is the same in every run. (How much of a prompt was read before, and the size of the context, is not.)
fn same(answer: &Value) -> Value {
    let names =
        ["text", "stop_reason", "prompt_tokens", "generated_tokens", "context_used", "seed", "logits_hash", "error"];
    names.iter().map(|name| (name.to_string(), answer[name].clone())).collect::<serde_json::Map<_, _>>().into()
}

#[track_caller]
fn check(output: &Output, code: i32, part: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(part), "'{part}' expected: {stderr}");
}

/// Prompts of many lengths: some end in a micro-batch of a few tokens, one is such a micro-batch alone, some begin alike.
fn prompts() -> Vec<String> {
    let words = "one two three four five six seven eight nine ten eleven twelve ";
    let mut prompts: Vec<String> =
        [3, 40, 41, 47, 55, 62, 70, 75, 130, 131, 260].iter().map(|&n| words.repeat(5)[..n].to_owned()).collect();
    prompts.extend(["Why?", "One more that is of another kind.", "one"].map(str::to_owned));
    prompts
}

#[test]
fn an_answer_is_the_one_that_it_is_alone() {
    for (arch, ty) in [(Arch::Llama, Type::Q4_0), (Arch::Gemma3, Type::Q4_0), (Arch::Qwen3, Type::Q4_K)] {
        let home = Home::new(&Forge { arch, n_layer: 5, seed: 3, ..Forge::tiny(ty, 4, 2) });
        let row = |(i, prompt): (usize, String)| json!({"id": i, "prompt": prompt, "n": 1 + 17 * i % 40});
        let rows: Vec<Value> = prompts().into_iter().enumerate().map(row).collect();
        for args in [&["-sys", "Be brief, whatever is asked."][..], &[], &["--kernels", "ggml"], &["--prune", "0.3"]] {
            let ignored = home.file("answers.jsonl");
            let _ = fs::remove_file(&ignored);
            let all = [args, &["--ignore-eos"]].concat();
            let output = home.batch(&rows, "answers.jsonl", &all);
            check(&output, 0, "14 rows");
            let is_one_by_one = String::from_utf8_lossy(&output.stderr).contains("one answer at a time");
            assert_eq!(is_one_by_one, args.contains(&"ggml"), "{args:?}");
            let got = answers(&home.file("answers.jsonl"));
            // With ggml's kernels rows are read and written as alone anyhow.
            for row in rows.iter().step_by(if is_one_by_one { 5 } else { 1 }) {
                let n = row["n"].to_string();
                let want = home.alone(row["prompt"].as_str().unwrap(), &[&all[..], &["-n", &n]].concat());
                assert_eq!(got[&row["id"].to_string()], same(&want), "{arch:?} {args:?} {row}");
            }
        }
    }
}

#[test]
fn what_prompts_have_in_common_is_read_once() {
    let home = Home::new(&Forge::smallest());
    let rows: Vec<Value> =
        ["a b c", "d e f", "g h i"].map(|p| json!({"prompt": format!("{p} and so on, and on")})).into();
    check(&home.batch(&rows, "out", &["-sys", &"Say little. ".repeat(20), "-n", "3"]), 0, "3 rows");
    let text = fs::read_to_string(home.file("out")).unwrap();
    let cached = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        row["cached_tokens"].as_u64().unwrap()
    };
    let cached: Vec<u64> = text.lines().map(cached).collect();
    assert_eq!(cached.iter().filter(|&&n| n > 200).count(), 2, "{cached:?}");
}

#[test]
fn rows_change_what_the_flags_say_and_those_that_fail_end_nothing() {
    let home = Home::new(&Forge { n_ctx: 256, ..Forge::smallest() });
    let good = [
        json!({"id": "a", "prompt": "Why?", "temperature": 0, "top_k": 3, "stop": ["\\q", "\n"], "n": 3}),
        json!({"id": 2.5, "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Why?"}], "seed": 9}),
        json!({"prompt": "JSON", "json_schema": {"enum": [7, 8]}, "n": 20}),
        json!({"prompt": "Why?", "system": "S", "ignore_eos": true}),
    ];
    let bad = [
        (json!({"prompt": "x", "temprature": 1}), "'temp'"),
        (json!({"prompt": "x", "prune": 0.2}), "not known"),
        (json!({"prompt": "x", "threads": 2}), "flag of the command"),
        (json!({"prompt": "x", "top_p": 3}), "0 to 1"),
        (json!({"prompt": "x", "n": [1, {}]}), "one value"),
        (json!({"prompt": 3}), "'prompt' wants a text"),
        (json!({"prompt": "x", "messages": []}), "both"),
        (json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}), "question"),
        (json!({"messages": [{"role": "user", "content": "x", "name": "z"}]}), "'messages' wants"),
        (json!({"id": null, "prompt": "x"}), "'id'"),
        (json!({"id": "a", "prompt": "x"}), "of line 1, too"),
        (json!({"prompt": "x", "json_schema": "/etc/passwd"}), "itself"),
        (json!({"prompt": "x", "json_schema": {"type": 7}}), "schema"),
        (json!({"prompt": "word ".repeat(300)}), "context"),
        (json!({"n": 3}), "neither"),
        (json!([1]), "no object"),
    ];
    let rows: Vec<Value> = good.iter().cloned().chain(bad.iter().map(|b| b.0.clone())).collect();
    let output = home.batch(&rows, "out", &["-n", "8"]);
    check(&output, 1, "16 of 20 rows failed");
    let text = fs::read_to_string(home.file("out")).unwrap();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    for (row, part) in &bad {
        let told = lines.iter().filter_map(|l| l["error"].as_str()).any(|e| e.contains(part));
        assert!(told, "'{part}' of {row}: {text}");
    }
    let line = |id: Value| {
        lines.iter().find(|l| l["id"] == id && l["error"].is_null()).unwrap_or_else(|| panic!("{id}: {text}"))
    };
    assert!(line(json!("a"))["generated_tokens"].as_u64().unwrap() <= 3);
    assert_eq!(line(json!(2.5))["seed"], 9);
    assert!(["7", "8"].contains(&line(json!(3))["text"].as_str().unwrap().trim()));
    assert_eq!(line(json!(4))["stop_reason"], "limit");
    // Those that failed are asked again, and nothing else is. The file stays the user's own.
    #[cfg(unix)]
    fs::set_permissions(home.file("out"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let before: Vec<&str> = text.lines().filter(|l| !l.contains("\"error\"")).collect();
    check(&home.batch(&rows, "out", &["-n", "8"]), 1, "goes on after 4 of 20 rows");
    let text = fs::read_to_string(home.file("out")).unwrap();
    assert!(before.iter().all(|b| text.lines().any(|l| l == *b)) && text.lines().count() == 20, "{text}");
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&fs::metadata(home.file("out")).unwrap()) & 0o777, 0o600);
}

#[test]
fn a_run_goes_on_from_wherever_it_was_cut() {
    let home = Home::new(&Forge::smallest());
    let rows: Vec<Value> = prompts()[..6].iter().map(|p| json!({"prompt": p, "n": 6})).collect();
    check(&home.batch(&rows, "whole", &[]), 0, "6 rows");
    let (want, bytes) = (answers(&home.file("whole")), fs::read(home.file("whole")).unwrap());
    for cut in [0, 1, 7, 8, 100, bytes.len() / 2, bytes.len() - 1, bytes.len()] {
        fs::write(home.file("cut"), &bytes[..cut]).unwrap();
        check(&home.batch(&rows, "cut", &[]), 0, "tok/s");
        assert_eq!(answers(&home.file("cut")), want, "cut at {cut}");
        let kept = bytes[..cut].iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        assert_eq!(fs::read(home.file("cut")).unwrap()[..kept], bytes[..kept]);
    }
    // Other rows, flags and files are not gone on with, and nothing of theirs is lost.
    let mut other = rows.clone();
    other[2]["prompt"] = "Something else".into();
    check(&home.batch(&other, "whole", &[]), 2, "another prompt");
    check(&home.batch(&rows, "whole", &["--temp", "0.1"]), 2, "other");
    check(&home.batch(&rows, "whole", &["-t", "2", "-q"]), 0, "");
    assert_eq!(fs::read(home.file("whole")).unwrap(), bytes);
    for text in ["my notes", "{\"a\": 1}\n", "{\"id\": 1, \"x\": 2}\n{\"id\":"] {
        fs::write(home.file("other"), text).unwrap();
        check(&home.batch(&rows, "other", &[]), 65, "no answer to a row");
        assert_eq!(fs::read_to_string(home.file("other")).unwrap(), text);
    }
}

#[test]
fn rows_come_from_a_pipe_and_answers_go_into_one() {
    let home = Home::new(&Forge::smallest());
    let mut child = home.program(&["batch", "-n", "4"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"{\"prompt\": \"Why?\"}\n\n{\"id\": \"b\", \"prompt\": \"So?\"}").unwrap();
    let output = finished(child);
    check(&output, 0, "2 rows");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut ids: Vec<&str> = text.lines().map(|l| l.split(',').next().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["{\"id\":\"b\"", "{\"id\":1"]);
    check(&home.batch(&[], "out", &[]), 0, "0 rows");
    for (args, part) in
        [(&["--prune", "0.2", "--prune-answer", "0.2"][..], "--prune-answer"), (&["--draft", "off"], "--draft")]
    {
        check(&home.batch(&[], "out", args), 2, part);
    }
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_what_is_done() {
    use rustix::process::{Pid, Signal, kill_process};
    let home = Home::new(&Forge::smallest());
    let rows: Vec<Value> = (0..200)
        .map(|i| json!({"prompt": format!("{i}?"), "n": if i == 0 { 2 } else { 1500 }, "ignore_eos": true}))
        .collect();
    fs::write(home.file("rows.jsonl"), rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    let mut command = home.program(&["batch"]);
    let child = command.arg("-i").arg(home.file("rows.jsonl")).arg("-o").arg(home.file("out")).spawn().unwrap();
    while fs::read(home.file("out")).map_or(0, |b| b.len()) == 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Another run on the same file is refused, as long as this one writes to it.
    check(&home.batch(&rows, "out", &[]), 74, "another run writes to this file");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = finished(child);
    check(&output, 130, "interrupted");
    let held = answers(&home.file("out"));
    assert!(held.contains_key("1") && held.len() < 200, "{held:?}");
}
