//! The built program, as a user types it.

mod common;

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::forge::Forge;
use common::smollm2;
use ggml::Type;

fn pp_run(args: &[&str]) -> Command {
    let mut command = common::pp_run();
    // One thread: tests run side by side, and threads that wait for each other by spinning starve.
    command.args(args).stdin(Stdio::null()).env("PP_ARG_THREADS", "1");
    command
}

fn output(args: &[&str]) -> Output {
    pp_run(args).output().unwrap()
}

fn model_run(args: &[&str]) -> Output {
    let model = smollm2();
    let all: Vec<&str> = ["-m", model.to_str().unwrap(), "--temp", "0"].iter().chain(args).copied().collect();
    output(&all)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[track_caller]
fn fails(output: &Output, code: i32, message: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(message), "{stderr}");
    assert_eq!(stderr.lines().filter(|l| l.contains("error:")).count(), 1, "one line: {stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn usage_errors_are_one_line_with_a_suggestion() {
    fails(&output(&["-m", "x", "--tempp", "1"]), 2, "did you mean '--temp'?");
    // Nothing is better than nonsense, and what llama.cpp has is named.
    fails(&output(&["-m", "x", "--zebra"]), 2, "unknown flag '--zebra': see --help");
    for flag in ["--in-prefix-bos", "--prefill-assistant", "--draft-max"] {
        fails(&output(&["-m", "x", flag]), 2, "does not have");
    }
    for flags in [["--poll", "50"], ["--cpu-mask", "f"], ["-Cr", "0-3"], ["--cpu-strict", "1"], ["-ot", "exps=CPU"]] {
        let o = output(&[&["-m", "/nonexistent.gguf", "-p", "x"], &flags[..]].concat());
        assert_eq!(o.status.code(), Some(66), "{flags:?}: {}", text(&o.stderr));
        assert!(text(&o.stderr).contains("has no effect in pp-run"), "{flags:?}");
    }
    fails(&output(&["-m", "/nonexistent.gguf", "-p", "x", "-kvu"]), 66, "-kvu has no effect");
    fails(&output(&["benhc"]), 2, "did you mean 'bench'?");
    fails(&output(&["-p", "x"]), 2, "no model");
    fails(&output(&["-m", "x.gguf", "-n", "many"]), 2, "many");
    fails(&output(&["-m", "x.gguf", "--mmproj", "g"]), 2, "yet");
    fails(&output(&["-m", "x.gguf", "--draft", "8"]), 2, "ngram, model:FILE, off");
    fails(&model_run(&[]), 2, "no prompt");
}

#[test]
fn gpus_are_listed_and_chosen() {
    let o = output(&["--list-devices"]);
    assert!(o.status.success() && text(&o.stdout).starts_with("Available devices:\n  "), "{}", text(&o.stderr));
    let o = model_run(&["-p", "x", "-n", "1", "-dev", "none", "-mg", "0", "-ts", "3,1"]);
    assert!(o.status.success(), "{}", text(&o.stderr));
    fails(&model_run(&["-p", "x", "-dev", "Abacus0"]), 2, "--device: 'Abacus0' is not there");
    fails(&model_run(&["-p", "x", "-ts", "3,one"]), 2, "--tensor-split: 'one' is no share");
    fails(&model_run(&["-p", "x", "-ts", "0,0"]), 2, "--tensor-split is 0, expected more than 0 in all");
}

#[test]
fn the_doctor_says_what_it_sees() {
    let o = output(&["doctor"]);
    assert!(o.status.success() && o.stderr.is_empty(), "{}", text(&o.stderr));
    let report = text(&o.stdout);
    for part in ["version ", "kernels ", "threads ", "physical core", "memory ", "device ", "CPU", "config ", "chats "]
    {
        assert!(report.contains(part), "'{part}' in {report}");
    }
    let (_, advice) = report.split_once("What would make it faster:\n").unwrap();
    assert!(!advice.is_empty() && advice.lines().all(|l| l.starts_with("- ")), "{advice}");
}

#[test]
fn without_a_model_those_that_are_there_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    let bare = |args: &[&str]| {
        let mut command = pp_run(args);
        let of_others =
            ["OLLAMA_MODELS", "LLAMA_CACHE", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"];
        for variable in ["PP_ARG_MODEL", "LLAMA_ARG_MODEL", "XDG_DATA_HOME"].into_iter().chain(of_others) {
            command.env_remove(variable);
        }
        command.current_dir(&home).env("HOME", &home).output().unwrap()
    };
    let none = bare(&[]);
    assert!(none.status.success() && text(&none.stdout).contains("No models were found"), "{}", text(&none.stdout));
    assert_eq!(text(&none.stdout).lines().count(), 4);
    fails(&bare(&["-p", "x"]), 2, "no model: pp-run -m MODEL.gguf -p");

    let models = home.join("models");
    let hash = "ab".repeat(32);
    let manifests = home.join(".ollama/models/manifests/registry.ollama.ai/library/tiny");
    let blobs = home.join(".ollama/models/blobs");
    for directory in [&models, &manifests, &blobs] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let forge = Forge::tiny(ggml::Type::Q8_0, 8, 2);
    forge.write(&models.join("a model.gguf"));
    Forge { seed: 2, ..forge.clone() }.write(&blobs.join(format!("sha256-{hash}")));
    let digest = format!("sha256:{hash}");
    let layer = serde_json::json!({"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 1});
    std::fs::write(manifests.join("latest"), serde_json::json!({ "layers": [layer] }).to_string()).unwrap();
    std::fs::write(models.join("broken.gguf"), "<!DOCTYPE html><html>").unwrap();
    let mut other = forge.doc();
    other.str("general.architecture", "mamba\u{1b}[2J");
    std::fs::write(models.join("other.gguf"), other.bytes()).unwrap();
    std::fs::write(models.join("mmproj-x.gguf"), "").unwrap();
    std::fs::write(models.join("x-00002-of-00002.gguf"), "").unwrap();

    let o = bare(&[]);
    assert!(o.status.success() && o.stderr.is_empty(), "{}", text(&o.stderr));
    let listing = text(&o.stdout);
    let line = |part: &str| {
        let found: Vec<&str> = listing.lines().filter(|l| l.contains(part) && !l.contains("pp-run -m")).collect();
        assert_eq!(found.len(), 1, "{part} in {listing}");
        found[0]
    };
    assert!(line("'./models/a model.gguf'").ends_with("random, llama 1M Q8_0"), "{listing}");
    assert!(line(&format!("sha256-{hash}")).contains("ollama's tiny:latest, random, llama 1M Q8_0"), "{listing}");
    assert!(line("./models/broken.gguf").contains("cannot be run: not a GGUF file but a web page"), "{listing}");
    assert!(line("./models/other.gguf").contains("architecture 'mamba\\x1b[2J'"), "{listing}");
    assert!(!listing.contains("mmproj") && !listing.contains("00002"), "{listing}");
    assert!(listing.contains("pp-run -m './models/a model.gguf' -p"), "{listing}");
    fails(&bare(&["-p", "x"]), 2, "no model: pp-run -m './models/a model.gguf' -p");
}

#[test]
fn a_file_alone_is_the_model() {
    let model = smollm2();
    let o = output(&[model.to_str().unwrap(), "-p", "x", "-n", "1", "-q"]);
    assert!(o.status.success() && !o.stdout.is_empty(), "{}", text(&o.stderr));
    fails(&output(&["/nonexistent.gguf", "-p", "x"]), 66, "/nonexistent.gguf: no such file");
    // One of ollama's, and one without a name of a model.
    let dir = tempfile::tempdir().unwrap();
    for name in [format!("sha256-{}", "ab".repeat(32)), "weights".to_owned()] {
        let path = dir.path().join(name);
        Forge::smallest().write(&path);
        let o = output(&[path.to_str().unwrap(), "-no-cnv", "-p", "x", "-n", "1", "-q"]);
        assert!(o.status.success(), "{}", text(&o.stderr));
    }
}

#[test]
fn words_without_a_flag_are_the_prompt() {
    let model = smollm2();
    let m = model.to_str().unwrap();
    let common = ["--temp", "0", "-n", "6", "-q"];
    let run = |args: &[&str]| output(&[args, &common].concat()).stdout;
    let expected = run(&["-m", m, "-p", "Name three colours."]);
    assert!(!expected.is_empty());
    for args in [&[m, "Name three colours."][..], &[m, "Name", "three", "colours."], &["run", m, "Name three colours."]]
    {
        assert_eq!(run(args), expected, "{args:?}");
    }
    assert_eq!(output(&[&common[..], &[m, "Name three colours."]].concat()).stdout, expected);
    fails(&output(&[m, "a question", "-p", "another"]), 2, "'a question' is no flag and no value of one, and --prompt");
    fails(&output(&["question"]), 2, "unknown command 'question'");
    fails(&output(&["a question"]), 2, "no model");
}

#[test]
fn chats_are_named_as_in_other_programs() {
    let dir = tempfile::tempdir().unwrap();
    let chats = |args: &[&str]| pp_run(&[&["chats"], args].concat()).env("XDG_DATA_HOME", dir.path()).output().unwrap();
    fails(&chats(&["show", "sea"]), 66, "sea.jsonl: there is no such chat");
    fails(&chats(&["rm", "sea"]), 66, "sea.jsonl");
    assert!(text(&chats(&["list"]).stdout).contains("no chat is saved"));
    fails(&chats(&["show"]), 2, "--show");
}

#[test]
fn a_bad_value_is_named_by_where_it_comes_from() {
    let with = |name: &str, value: &str| pp_run(&["-m", "x.gguf", "-p", "x"]).env(name, value).output().unwrap();
    fails(&with("LLAMA_ARG_TOP_K", "abc"), 2, "error: LLAMA_ARG_TOP_K: invalid value 'abc'");
    fails(&with("PP_ARG_TOP_P", "7"), 2, "error: PP_ARG_TOP_P: --top-p is 7");
    fails(&with("PP_ARG_NO_STDIN", "maybe"), 2, "PP_ARG_NO_STDIN");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "min_p = 3\n").unwrap();
    let c = config.to_str().unwrap();
    fails(&output(&["-m", "x.gguf", "-p", "x", "--config", c]), 2, &format!("error: {c}: 'min_p': --min-p is 3"));
}

#[test]
fn numbers_reach_the_template_as_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    let template = "{{ raise_exception(n|string ~ ' ' ~ (0 if z else 1) ~ ' ' ~ o.a[1] ~ ' ' ~ (n > 511)) }}";
    let expected = "fails (512 1 2.5 True)";
    let json = r#"{"n": 512, "z": 0, "o": {"a": [1, 2.5]}}"#;
    fails(&model_run(&["-p", "x", "--chat-template", template, "--chat-template-kwargs", json]), 65, expected);
    for text in
        [format!("chat-template-kwargs = '{json}'"), "[chat-template-kwargs]\nn = 512\nz = 0\no.a = [1, 2.5]".into()]
    {
        std::fs::write(&config, text).unwrap();
        let c = config.to_str().unwrap();
        fails(&model_run(&["-p", "x", "--chat-template", template, "--config", c]), 65, expected);
    }
}

#[test]
fn a_template_that_makes_no_prompt_is_an_error() {
    for template in
        ["{{ nothing }}", "{% for m in message %}{{ m.content }}{% endfor %}", "{% if false %}{% endif %} \n"]
    {
        fails(&model_run(&["-p", "x", "--chat-template", template]), 65, "makes an empty prompt");
    }
    fails(&model_run(&["-p", "x", "--chat-template", "{% for %}"]), 65, "is broken");
    fails(&model_run(&["-p", "x", "--chat-template", "{{ m.nothing.at_all }}"]), 65, "fails");
    let generation = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let ask =
        |template: &str| model_run(&["-p", "Once upon a time", "-n", "6", "-q", "--chat-template", template]).stdout;
    assert!(!ask(plain).is_empty());
    assert_eq!(ask(generation), ask(plain));
}

#[test]
fn stdin_can_be_left_alone() {
    let model = smollm2();
    let m = model.to_str().unwrap();
    let start = |args: &[&str]| {
        let all = [&["-m", m, "--temp", "0", "-n", "3"], args].concat();
        let mut child =
            pp_run(&all).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        (child, stdin)
    };
    let expected = model_run(&["-p", "Hello", "-n", "3"]).stdout;
    // Nobody closes the pipe.
    let (child, stdin) = start(&["-p", "Hello", "--no-stdin"]);
    assert_eq!(common::finished(child).stdout, expected);
    drop(stdin);
    for (args, way_out) in [(&["-p", "Hello"][..], "to its end; --no-stdin leaves it alone\n"), (&[], "to its end\n")] {
        let (mut child, stdin) = start(args);
        let line = format!("pp-run: waiting for text on stdin, {way_out}");
        let mut said = vec![0; line.len()];
        std::io::Read::read_exact(child.stderr.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(text(&said), line);
        // Ctrl-C is heard meanwhile.
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        assert_eq!(common::finished(child).status.code(), Some(130));
        drop(stdin);
    }
    // What is added is said.
    let (child, mut stdin) = start(&["-p", "Hello"]);
    stdin.write_all(b"there\n").unwrap();
    drop(stdin);
    assert!(text(&common::finished(child).stderr).starts_with("pp-run: 5 bytes of stdin are added below the prompt;"));
    fails(&model_run(&["-f", "-", "--no-stdin"]), 2, "--no-stdin");
    fails(&model_run(&["--no-stdin"]), 2, "no prompt");
}

#[test]
fn two_bos_tokens_are_warned_of_once() {
    let gemma = common::gemma3();
    let ask = |args: &[&str]| {
        let o = output(&[&["-m", gemma.to_str().unwrap(), "-n", "1"], args].concat());
        assert!(o.status.success(), "{}", text(&o.stderr));
        text(&o.stderr).matches("warning: the prompt begins with two BOS tokens").count()
    };
    assert_eq!(ask(&["-no-cnv", "-p", "<bos>Hello"]), 1);
    assert_eq!(ask(&["-no-cnv", "-p", "Hello"]), 0);
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    assert_eq!(ask(&["-p", "Hello", "--chat-template", template]), 0);
    assert_eq!(ask(&["-p", "Hello", "--chat-template", &format!("{{{{ bos_token }}}}{template}")]), 1);
}

#[test]
fn files_from_windows_are_texts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.txt");
    let ids = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let model = smollm2();
        text(&output(&["tokenize", "-m", model.to_str().unwrap(), "-f", path.to_str().unwrap(), "--ids"]).stdout)
    };
    let utf16 = |unit: fn(u16) -> [u8; 2]| "\u{feff}Hello world\r\n".encode_utf16().flat_map(unit).collect::<Vec<u8>>();
    for bytes in [b"\xef\xbb\xbfHello world".to_vec(), utf16(u16::to_le_bytes), utf16(u16::to_be_bytes)] {
        assert_eq!(ids(&bytes), "[19556,905]\n", "{bytes:?}");
        let asked = model_run(&["-f", path.to_str().unwrap(), "-n", "1", "-q", "--display-prompt"]);
        assert!(text(&asked.stdout).starts_with("Hello world"), "{asked:?}");
    }
    fails(&model_run(&["-f", path.to_str().unwrap(), "--strict-utf8"]), 65, "is UTF-16, not UTF-8 text");
    let marked = model_run(&["-p", "\u{feff}Hello", "-n", "1", "-q", "--display-prompt"]);
    assert!(text(&marked.stdout).starts_with("Hello"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_stdout_is_an_error() {
    let model = smollm2();
    for args in ["show \"$1\"", "-m \"$1\" -p x -n 1", "--help"] {
        let o = common::apart(&mut Command::new("sh"))
            .args(["-c", &format!("\"$0\" {args} >&-"), env!("CARGO_BIN_EXE_pp-run"), model.to_str().unwrap()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        fails(&o, 74, "stdout is closed");
    }
    // Without an stderr it runs as well.
    let o = Command::new("sh")
        .args(["-c", "\"$0\" --version 2>&-", env!("CARGO_BIN_EXE_pp-run")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(o.status.success() && text(&o.stdout).starts_with("pp-run "));
}

#[test]
fn models_of_one_size_have_rows_with_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a.gguf", "b.gguf"].map(|name| dir.path().join(name));
    paths.iter().for_each(|path| Forge::smallest().write(path));
    let [a, b] = paths.each_ref().map(|path| path.to_str().unwrap());
    let table =
        |args: &[&str]| text(&output(&[&["bench", "-p", "4", "-n", "0", "-r", "1", "-q"], args].concat()).stdout);
    let both = table(&["-m", a, "-m", b]);
    assert!(both.contains(a) && both.contains(b), "{both}");
    assert!(!table(&["-m", a]).contains("a.gguf"));
}

#[test]
fn files_that_are_no_models_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("page.gguf");
    std::fs::write(&path, "<!DOCTYPE html><html>").unwrap();
    fails(&output(&["-m", path.to_str().unwrap(), "-p", "x"]), 65, "web page");
    fails(&output(&["-m", "/nonexistent.gguf", "-p", "x"]), 66, "/nonexistent.gguf: no such file");
    fails(&output(&["-m", dir.path().to_str().unwrap(), "-p", "x"]), 66, "directory");
    fails(&output(&["show", "/nonexistent.gguf"]), 66, "no such file");
}

#[test]
fn help_version_completions_and_manual() {
    for args in [&["--help"][..], &["-h"], &["help"], &["bench", "--help"], &["help", "perplexity"]] {
        let o = output(args);
        assert!(o.status.success() && text(&o.stdout).contains("Usage:"), "{args:?}");
    }
    assert!(text(&output(&["--version"]).stdout).starts_with("pp-run "));
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&output(&["completions", shell]).stdout).contains("cache-type-k"), "{shell}");
    }
    assert!(text(&output(&["man"]).stdout).contains(".TH pp-run"));
}

#[test]
fn the_answer_is_on_stdout_and_nothing_else() {
    let o = model_run(&["-p", "Name three colours.", "-n", "12"]);
    assert!(o.status.success());
    let answer = text(&o.stdout);
    assert!(!answer.trim().is_empty() && answer.ends_with('\n'));
    let stderr = text(&o.stderr);
    for part in ["prompt ", " tok/s", "generated 12 tokens", "first token", "context ", "seed ", "logits ", "limit"] {
        assert!(stderr.contains(part), "'{part}' in {stderr}");
    }
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let quiet = model_run(&["-p", "Name three colours.", "-n", "12", "-q"]);
    assert_eq!((text(&quiet.stdout), text(&quiet.stderr)), (answer, String::new()));
}

#[test]
fn prompts_come_from_flags_files_and_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.txt");
    std::fs::write(&path, "Once upon a time\n").unwrap();
    let common = ["-no-cnv", "-n", "8", "-q"];
    let run = |args: &[&str]| model_run(&[&common, args].concat());
    let expected = run(&["-p", "Once upon a time"]).stdout;
    assert_eq!(run(&["-f", path.to_str().unwrap()]).stdout, expected);

    let piped = |args: &[&str], input: &str| {
        let model = smollm2();
        let all = [&["-m", model.to_str().unwrap(), "--temp", "0"], &common[..], args].concat();
        let mut child =
            pp_run(&all).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().stdout
    };
    assert_eq!(piped(&[], "Once upon a time\n"), expected);
    assert_eq!(piped(&["-f", "-"], "Once upon a time\n"), expected);
    let both = run(&["-p", "Once upon\n\na time"]).stdout;
    assert_eq!(piped(&["-p", "Once upon"], "a time"), both);
    fails(&run(&["-f", "/nonexistent.txt"]), 66, "/nonexistent.txt: no such file");
}

#[test]
fn json_is_one_object() {
    let o = model_run(&["-p", "Count to ten.", "-n", "5", "--output-format", "json", "-q", "-s", "7", "--ignore-eos"]);
    let value: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    assert_eq!(value["generated_tokens"], 5);
    assert_eq!(value["stop_reason"], "limit");
    assert_eq!(value["seed"], 7);
    assert!(value["text"].is_string() && value["timings"]["prompt_tokens_per_s"].is_number());
}

#[cfg(target_os = "linux")]
#[test]
fn peak_memory_is_what_the_system_counts() {
    const MEASURE: &str = "\
import json, resource, subprocess, sys
run = subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({'stdout': run.stdout, 'stderr': run.stderr, 'bytes': kib * 1024}))";
    let model = smollm2();
    let args = ["-m", model.to_str().unwrap(), "-p", "x", "-n", "4", "-c", "256", "--output-format", "json"];
    let o = common::apart(&mut Command::new("python3"))
        .args(["-c", MEASURE, env!("CARGO_BIN_EXE_pp-run")])
        .args(args)
        .output()
        .unwrap();
    assert!(o.status.success(), "{}", text(&o.stderr));
    let value: serde_json::Value = serde_json::from_slice(&o.stdout).unwrap();
    let counted = value["bytes"].as_f64().unwrap();
    let answer: serde_json::Value = serde_json::from_str(value["stdout"].as_str().unwrap()).unwrap();
    let line = value["stderr"].as_str().unwrap();
    let said = line.split("peak memory ").nth(1).and_then(|l| l.split(" MiB").next()).unwrap();
    for bytes in [answer["peak_memory_bytes"].as_f64().unwrap(), said.parse::<f64>().unwrap() * 1024.0 * 1024.0] {
        assert!((bytes / counted - 1.0).abs() < 0.05, "{bytes} against {counted}");
    }
}

#[test]
fn a_trace_has_the_nodes_of_each_micro_batch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    let args = ["-p", &"The river rose. ".repeat(8), "-no-cnv", "-ub", "24", "-n", "3", "--kernels", "ggml"];
    let (plain, traced) = (model_run(&args), model_run(&[&args[..], &["--trace", path.to_str().unwrap()]].concat()));
    let hash = |o: &Output| text(&o.stderr).split("logits ").nth(1).unwrap().to_owned();
    assert_eq!((&traced.stdout, hash(&traced)), (&plain.stdout, hash(&plain)));

    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    // Times are in microseconds, and a sum of decimal fractions is a little off.
    const OFF: f64 = 0.01;
    let (mut outer, mut inner) = (Vec::new(), Vec::new());
    for event in trace["traceEvents"].as_array().unwrap() {
        assert!(event["ph"] == "X" && event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
        let [ts, dur] = ["ts", "dur"].map(|name| event[name].as_f64().unwrap());
        let (name, category) = (event["name"].as_str().unwrap(), event["cat"].as_str().unwrap());
        let is_node = !["load", "batch"].contains(&category);
        let events = if is_node { &mut inner } else { &mut outer };
        // Events of one level follow one another.
        assert!(dur >= 0.0 && events.last().is_none_or(|(_, _, _, end)| *end <= ts + OFF), "{event}");
        events.push((name, category, ts, ts + dur));
        assert_eq!(event["args"]["shape"].as_array().map(Vec::len), is_node.then_some(4));
    }
    assert_eq!(outer.iter().map(|e| e.0).collect::<Vec<_>>(), ["load", "micro-batch", "micro-batch"]);
    for (i, &(_, category, start, end)) in outer.iter().enumerate() {
        let nodes: Vec<_> = inner.iter().filter(|(_, _, ts, to)| start <= ts + OFF && *to <= end + OFF).collect();
        let last_is_logits = nodes.last().map(|n| (n.0, n.1)) == Some(("result_output", "MUL_MAT"));
        // Only the prompt's end has logits.
        assert_eq!(last_is_logits, i + 1 == outer.len());
        assert_eq!(nodes.iter().any(|n| n.0 == "Qcur-0"), category == "batch");
        assert!(nodes.iter().map(|n| n.3 - n.2).sum::<f64>() <= end - start + OFF);
        inner.retain(|n| !(start..=end).contains(&n.2));
    }
    assert!(inner.is_empty(), "nodes outside micro-batches: {inner:?}");

    let o = model_run(&["-p", "x", "-n", "1", "--trace", "/nonexistent/trace.json"]);
    assert_eq!((o.status.code(), text(&o.stderr).contains("/nonexistent/trace.json")), (Some(73), true));
}

#[test]
fn stop_strings_limits_and_seeds() {
    let all = text(&model_run(&["-p", "1, 2, 3, 4,", "-no-cnv", "-n", "16", "-q"]).stdout);
    assert!(all.contains(" 6"), "{all}");
    let cut = text(&model_run(&["-p", "1, 2, 3, 4,", "-no-cnv", "-n", "16", "-q", "-r", " 6"]).stdout);
    assert_eq!(cut.trim_end(), all.split(" 6").next().unwrap().trim_end());
    let draw = |seed: &str| {
        let model = smollm2();
        output(&["-m", model.to_str().unwrap(), "-p", "A poem", "-n", "24", "-q", "-s", seed]).stdout
    };
    assert_eq!(draw("11"), draw("11"));
    assert_ne!(draw("11"), draw("12"));
}

#[test]
fn prompts_beyond_the_context_and_contexts_beyond_memory() {
    let long = "word ".repeat(400);
    fails(&model_run(&["-p", &long, "-c", "256"]), 65, "the context holds 256");
    fails(&model_run(&["-p", "x", "-c", "1000000000"]), 71, "available");
}

#[test]
fn tokens_of_a_text() {
    let model = smollm2();
    let m = model.to_str().unwrap();
    let ids: Vec<i32> =
        serde_json::from_slice(&output(&["tokenize", "-m", m, "-p", "Hello world", "--ids"]).stdout).unwrap();
    assert_eq!(ids, [19556, 905]);
    assert_eq!(text(&output(&["tokenize", "-m", m, "-p", "Hello world", "--show-count"]).stdout), "2\n");
    assert!(text(&output(&["tokenize", "-m", m, "-p", "Hello world"]).stdout).contains("905 -> ' world'"));
    // Parts of a character are bytes.
    let parts = text(&output(&["tokenize", "-m", m, "-p", "\u{65e5}\u{e9}"]).stdout);
    assert!(parts.contains(r"'\xe6\x97'") && parts.contains(r"'\xa5'") && !parts.contains('\u{fffd}'), "{parts}");
}

#[test]
fn a_model_is_shown() {
    let model = smollm2();
    let m = model.to_str().unwrap();
    let overview = text(&output(&["show", m, "--tensors"]).stdout);
    for part in ["architecture           llama", "layers                 30", "blk.29.ffn_down.weight", "Q4_1"] {
        assert!(overview.contains(part), "{part}");
    }
    let value: serde_json::Value = serde_json::from_slice(&output(&["show", m, "--json"]).stdout).unwrap();
    assert_eq!(value["metadata"]["llama.block_count"], 30);
}

#[test]
fn perplexity_is_compared_with_a_file_as_llama_perplexity_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, base) = (dir.path().join("text.txt"), dir.path().join("base.kld"));
    std::fs::write(&path, "The river rose in the night and took the bridge with it. ".repeat(30)).unwrap();
    let (model, base) = (smollm2(), base.to_str().unwrap());
    let common = ["perplexity", "-m", model.to_str().unwrap(), "-f", path.to_str().unwrap(), "-q"];
    let run = |more: &[&str]| {
        output(&[&common[..], &["-c", "64", "--chunks", "2", "--kl-divergence-base", base], more].concat())
    };
    fails(&run(&["--kl"]), 66, "cannot be read");
    let written = text(&run(&[]).stdout);
    // Header, tokens, and 31 rows of each window, with an even number of codes behind two floats.
    assert_eq!(std::fs::metadata(base).unwrap().len(), 20 + 2 * (4 * 64 + 31 * 2 * (49152 + 4)));
    let same = text(&run(&["--kl"]).stdout);
    assert!(same.lines().any(|l| l == "Same top p: 100.000 ± 0.000 %"), "{same}");
    assert_eq!(same.lines().last(), written.lines().last());
    let kl = |table: &str| {
        let line = table.lines().find(|l| l.starts_with("Mean    KLD: ")).unwrap();
        line.split_whitespace().nth(2).unwrap().parse::<f64>().unwrap()
    };
    let pruned = text(&run(&["--kl", "--prune", "0.2"]).stdout);
    assert!(kl(&same).abs() < 1e-4 && kl(&pruned) > 0.01, "{same}{pruned}");
    fails(&output(&[&common[..], &["-c", "32", "--kl-divergence-base", base, "--kl"]].concat()), 65, "use -c 64");
    fails(&output(&[&common[..], &["-c", "64", "--kl-divergence-base", base, "--kl"]].concat()), 65, "--chunks 2");
}

#[test]
fn perplexity_and_bench_print_what_llama_cpp_prints() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    std::fs::write(&path, "The river rose in the night and took the bridge with it. ".repeat(30)).unwrap();
    let model = smollm2();
    let m = model.to_str().unwrap();
    let o = output(&["perplexity", "-m", m, "-f", path.to_str().unwrap(), "-c", "128", "--chunks", "2", "-q"]);
    let last = text(&o.stdout);
    let last = last.lines().last().unwrap();
    assert!(last.starts_with("Final estimate: PPL = ") && last.contains(" +/- "), "{last}");
    let short = output(&["perplexity", "-m", m, "-f", path.to_str().unwrap(), "-c", "4096", "-q"]);
    fails(&short, 65, "two windows of 4096");

    let o =
        output(&["bench", "-m", m, "-p", "16", "-n", "2", "-r", "1", "-o", "json", "-q", "--baseline", "llama.cpp"]);
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&o.stdout).unwrap();
    let tests: Vec<&str> = rows.iter().map(|r| r["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp16", "pp16", "tg2", "tg2"]);
    for row in &rows {
        assert!(row["avg_ts"].as_f64().unwrap() > 0.0 && row["n_threads"].is_number() && row["stddev_ts"].is_number());
        assert_eq!(row["engine"] == "pp-run", row["ratio"].is_number());
    }
    let table = text(&output(&["bench", "-m", m, "-p", "16", "-n", "0", "-r", "1", "-q"]).stdout);
    assert!(table.starts_with("| model") && table.contains(" pp16 "), "{table}");
}

#[test]
fn bench_runs_llama_cpp_at_its_best_and_steps() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    // ggml rearranges matrices of this type, and none of 32-bit floats.
    let repacks = cfg!(target_arch = "x86_64");
    for (ty, repacks) in [(Type::Q4_0, repacks), (Type::F32, false)] {
        Forge::tiny(ty, 4, 2).write(&model);
        let m = model.to_str().unwrap();
        let bench = |args: &[&str]| output(&[&["bench", "-m", m, "-r", "1", "-q", "-d", "32"], args].concat());
        let args = ["-p", "16", "--steps", "2-3,16", "--baseline", "llama.cpp"];
        let o = bench(&[&args[..], &["-o", "json"]].concat());
        let rows: Vec<serde_json::Value> =
            serde_json::from_slice(&o.stdout).unwrap_or_else(|e| panic!("{e}: {}", text(&o.stderr)));
        let cells: Vec<_> = rows.iter().map(|r| (r["test"].as_str().unwrap(), r["engine"].as_str().unwrap())).collect();
        let tests = ["pp16 @ d32", "step1 @ d32", "step2 @ d32", "step3 @ d32", "step16 @ d32"];
        let expected: Vec<_> = tests.iter().flat_map(|test| [(*test, "llama.cpp"), (*test, "pp-run")]).collect();
        assert_eq!(cells, expected);
        for row in &rows {
            assert_eq!(row["repack"].is_boolean(), repacks && row["engine"] == "llama.cpp", "{row}");
            assert_eq!(row["step_cost"].is_number(), row["test"] != "pp16 @ d32");
            assert!(row["step_cost"].is_null() || row["step_nmse"].as_f64().unwrap() < 0.1, "{row}");
            assert!(row["test"] != "step1 @ d32" || row["step_cost"] == 1.0, "{row}");
        }
        let table = text(&bench(&args).stdout);
        assert!(table.contains("| t(n)/t(1) |") && table.contains(" 1.000 |"), "{table}");
        let names = ["llama.cpp, repacked |", "llama.cpp, as in file |"];
        assert_eq!(names.iter().any(|name| table.contains(name)), repacks, "{table}");
        fails(&bench(&["--steps", "0-4"]), 2, "--steps is 0, expected 1 to 512");
        fails(&bench(&["--steps", "600"]), 2, "--steps is 600");
        fails(&bench(&["--steps", "4", "--prune", "0.2"]), 2, "leave out --prune");
    }
}

#[test]
fn bench_runs_each_test_at_each_ratio() {
    let model = smollm2();
    let m = model.to_str().unwrap();
    let bench = |args: &[&str]| output(&[&["bench", "-m", m, "-r", "1"], args].concat());
    let o = bench(&[
        "-p",
        "64",
        "-n",
        "2",
        "-d",
        "64",
        "--prune",
        "0,0.2",
        "--prune-answer",
        "0.2",
        "--prune-min-tokens",
        "2",
        "--baseline",
        "llama.cpp",
        "-o",
        "json",
        "-q",
    ]);
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&o.stdout).unwrap();
    let cells: Vec<_> = rows.iter().map(|r| (r["engine"].as_str().unwrap(), r["prune"].as_f64().unwrap())).collect();
    assert_eq!(cells, [("llama.cpp", 0.0), ("pp-run", 0.0), ("pp-run", 0.2)].repeat(2));
    for (i, row) in rows.iter().enumerate() {
        let pruned = row["prune"] != 0.0;
        // Only an answer runs on weights that are reduced once.
        let frozen = pruned && i >= 3;
        let number = |name: &str| row[name].as_f64().unwrap();
        assert_eq!(number("kept") < 1.0, pruned, "{row}");
        assert_eq!(row["prune_report"].is_string(), pruned);
        assert_eq!(row["ratio"].is_number(), row["engine"] == "pp-run");
        assert_eq!((number("freeze_bytes") > 0.0, number("avg_freeze_ns") > 0.0), (frozen, frozen), "{row}");
        assert_eq!(number("avg_ts_without_freeze") > number("avg_ts"), frozen, "{row}");
        assert!(row["kernels"].is_string());
    }
    let o = bench(&["-p", "0", "-n", "2", "--prune", "0.2", "--prune-answer", "0.2"]);
    assert!(text(&o.stderr).contains("no prompt to choose masks by"), "{}", text(&o.stderr));
    let table = text(&o.stdout);
    assert!(table.contains("| prune |   kept |") && table.contains("|   0.2 | 100.0% |"), "{table}");
    fails(&bench(&["--prune", "0,0.9"]), 2, "--prune is 0.9");
    fails(&bench(&["--prune-skip", "1"]), 2, "--prune R");
    fails(&bench(&["--prune-min-tokens", "1"]), 2, "--prune R");
}

#[cfg(unix)]
#[test]
fn a_closed_pipe_is_success_and_signals_have_their_codes() {
    use std::io::Read;
    let model = smollm2();
    let args = ["-m", model.to_str().unwrap(), "--ignore-eos", "-p", "Tell a story.", "-n", "100000", "-c", "8192"];
    let mut child = pp_run(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 8]).unwrap();
    drop(out);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut child = pp_run(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 8]).unwrap();
        let killed = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let mut rest = Vec::new();
        out.read_to_end(&mut rest).unwrap();
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(code), "{stderr}");
        assert!(stderr.contains("interrupted") && stderr.contains("tok/s"), "what came is accounted for: {stderr}");
    }
}

#[test]
fn power_and_priority() {
    for power in ["0", "1.5", "-1", "nan", "inf"] {
        fails(&model_run(&["-p", "x", "--power", power]), 2, "--power is");
    }
    fails(&model_run(&["-p", "x", "--power", "half"]), 2, "half");
    for prio in ["-2", "4", "lowest"] {
        fails(&model_run(&["-p", "x", "--prio", prio]), 2, "--prio: ");
    }
    let args = ["-p", "Count to ten.", "-n", "4", "-no-cnv"];
    let plain = model_run(&args);
    for more in [&["--power", "0.5"][..], &["--power", "1"], &["--prio", "low"], &["--prio", "-1"], &["--prio", "0"]] {
        let o = model_run(&[&args[..], more].concat());
        assert!(o.status.success(), "{more:?}: {}", text(&o.stderr));
        assert_eq!(o.stdout, plain.stdout, "{more:?}");
    }
}

/// The rest between two tokens would take minutes.
#[cfg(unix)]
#[test]
fn a_rest_is_interrupted() {
    use std::io::Read;
    let model = smollm2();
    for engine in ["own", "libllama"] {
        let args =
            ["-m", model.to_str().unwrap(), "-p", "Tell a story.", "-n", "9", "--power", "0.00001", "--engine", engine];
        let mut child = pp_run(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let o = common::finished(child);
        assert_eq!(o.status.code(), Some(130), "{}", text(&o.stderr));
    }
}

/// The baseline reads 12,000 tokens first, which takes minutes.
#[cfg(unix)]
#[test]
fn a_baseline_is_interrupted() {
    let model = smollm2();
    let m = model.to_str().unwrap();
    let args = ["bench", "-m", m, "-p", "1", "-n", "0", "-d", "12000", "-r", "1", "--baseline", "llama.cpp"];
    let child = pp_run(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    let start = Instant::now();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let o = common::finished(child);
    assert_eq!(o.status.code(), Some(143), "{}", text(&o.stderr));
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn the_file_says_how_answers_are_drawn_unless_the_user_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let write = |temp: f32| {
        let mut doc = Forge::smallest().doc();
        doc.f32("general.sampling.temp", temp);
        doc.set("general.sampling.top_k", common::forge::I32, 7i32.to_le_bytes());
        std::fs::write(&path, doc.bytes()).unwrap();
    };
    let ask = |more: &[&str]| {
        output(&[&["-m", path.to_str().unwrap(), "-p", "ab", "-n", "6", "-no-cnv", "--seed", "1"], more].concat())
    };
    write(0.0);
    let drawn = ask(&[]);
    assert!(text(&drawn.stderr).contains("| drawn as the file says: temp 0, top-k 7 | seed"), "{drawn:?}");
    assert_eq!(drawn.stdout, ask(&["--temp", "0"]).stdout);
    let given = ask(&["--temp", "5", "--top-k", "0"]);
    assert!(!text(&given.stderr).contains("as the file says"), "{given:?}");
    assert_ne!(drawn.stdout, given.stdout);
    // What pp-run does not have is said, if it is more than nothing.
    let mut doc = Forge::smallest().doc();
    doc.f32("general.sampling.novelty", 0.5);
    doc.set("general.sampling.sameness", common::forge::I32, 0i32.to_le_bytes());
    std::fs::write(&path, doc.bytes()).unwrap();
    let said = text(&ask(&[]).stderr);
    assert!(said.contains("drawn by novelty 0.5 too, which pp-run does not have"), "{said}");
    assert!(!said.contains("sameness"), "{said}");
    write(f32::NAN);
    fails(&ask(&[]), 65, "general.sampling of the file cannot be used");
    let with_order = |order: &str| {
        let mut doc = Forge::smallest().doc();
        doc.str("general.sampling.sequence", order);
        std::fs::write(&path, doc.bytes()).unwrap();
    };
    with_order("top_k;temperature");
    let ordered = text(&ask(&[]).stderr);
    assert!(ordered.contains("| drawn as the file says: samplers top_k;temperature | seed"), "{ordered}");
    assert!(!text(&ask(&["--sampler-seq", "kt"]).stderr).contains("as the file says"));
    with_order("top_q");
    fails(&ask(&[]), 65, "'top_q' is not one of: penalties, dry");
    fails(&ask(&["--samplers", "dry", "-l", "999+1"]), 2, "--logit-bias: there is no token 999");
}

#[test]
fn the_prompt_is_printed_as_the_model_gets_it() {
    let said = output(&["-m", smollm2().to_str().unwrap(), "-p", "Hi\n you", "-n", "1", "--verbose-prompt"]);
    let stderr = text(&said.stderr);
    for line in ["the prompt has ", "      1 [<|im_start|>]", " '\\x0a'", " ' you'", "      2 [<|im_end|>]"] {
        assert!(stderr.contains(line), "{line}: {stderr}");
    }
    assert!(!text(&said.stdout).contains("im_start"));
}

#[test]
fn a_cache_that_harms_a_model_is_told_of_and_measured_once() {
    let home = tempfile::tempdir().unwrap();
    let model = home.path().join("model.gguf");
    Forge::tiny(Type::Q4_0, 4, 2).write(&model);
    let run = |types: &str, cache: &std::path::Path| {
        let args = [
            "-m",
            model.to_str().unwrap(),
            "-no-cnv",
            "-p",
            "x",
            "-n",
            "1",
            "--no-stdin",
            "-ctk",
            types,
            "-ctv",
            types,
        ];
        let o = pp_run(&args).env("XDG_CACHE_HOME", cache).output().unwrap();
        assert!(o.status.success(), "{}", text(&o.stderr));
        text(&o.stderr)
    };
    let kept = || -> Vec<_> {
        let files = std::fs::read_dir(home.path().join("pp-run/kv-types")).into_iter().flatten();
        files.map(|f| f.unwrap().path()).collect()
    };
    run("f16", home.path());
    run("bf16", home.path());
    assert!(kept().is_empty(), "only quantised caches are measured");
    run("q4_0", home.path());
    let [file] = &kept()[..] else { panic!("{:?}", kept()) };
    let kl: f64 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    assert!((0.0..5.0).contains(&kl), "{kl}");
    // What is kept counts.
    for (kl, part) in [
        ("0.5", Some("KL 0.500 against f16, more than Q3_K_M")),
        ("0.04", Some("between Q4_K_M and Q3_K_M")),
        ("0.03", None),
    ] {
        std::fs::write(file, kl).unwrap();
        let told = run("q4_0", home.path());
        assert!(part.is_none_or(|p| told.contains(p)) && told.contains("suffer") == part.is_some(), "{told}");
    }
    std::fs::write(file, "damaged").unwrap();
    run("q4_0", home.path());
    assert_eq!(
        std::fs::read_to_string(file).unwrap().trim().parse::<f64>().unwrap(),
        kl,
        "measured again, with the same result"
    );
    run("q4_0", std::path::Path::new("/dev/null"));
}
