//! `pp-run eval`: questions, hashes and metrics are lm-evaluation-harness's, likelihoods are those of each text by itself, and a run that was
//! interrupted goes on.

mod common;
#[allow(dead_code, reason = "its main is an example's")]
#[path = "tools/requantise.rs"]
mod requantise;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use common::{check, load, pp_run, smollm2, tokenizer, turn};
use pp_run::engine::{Likelihood, LlamaSession, Options as ContextOptions, Request, Session, libllama};
use pp_run::eval::{Answer, Rules, Task, estimate, hashes_of, sample};
use pp_run::gguf::Gguf;
use pp_run::graph::CacheType;
use pp_run::model::Options as ModelOptions;
use pp_run::tokenizer::Tokenizer;
use serde_json::{Value, json};

fn golden(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval").join(file);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The rows of a task, a line each.
fn rows(task: &str) -> String {
    golden("rows.json")[task].as_array().unwrap().iter().map(|row| format!("{row}\n")).collect()
}

fn requests(tokenizer: &Tokenizer, task: &Task, rules: Rules, max_length: usize) -> Vec<Vec<Request>> {
    let of = |q: &pp_run::eval::Question| rules.requests(tokenizer, &q.pairs, max_length).unwrap().unwrap();
    task.questions.iter().map(of).collect()
}

/// The harness's own code made the stored samples (tests/golden/lm_eval): of its made-up likelihoods we make the same.
#[test]
fn samples_are_those_of_lm_evaluation_harness() {
    let (_, tokenizer) = tokenizer();
    let stored = golden("lm_eval.json");
    let tasks = stored["tasks"].as_object().unwrap();
    assert_eq!(tasks.len(), 8);
    for (name, want) in tasks {
        let task = Task::parse(Path::new("rows"), name.clone(), &rows(name), Rules::LmEval, usize::MAX).unwrap();
        let metrics = task.form.metrics(Rules::LmEval);
        let requests = requests(&tokenizer, &task, Rules::LmEval, 8192);
        let mut samples = Vec::new();
        for (i, wanted) in want["samples"].as_array().unwrap().iter().enumerate() {
            let n_tokens = requests[i].iter().map(|r| json!([r.tokens.len() - r.n_scored, r.n_scored]));
            assert_eq!(json!(n_tokens.collect::<Vec<_>>()), want["n_tokens"][i], "{name} {i}");
            let likelihood = |r: &Value| Likelihood {
                sum: r[0].as_str().unwrap().parse().unwrap(),
                is_greedy: r[1].as_str() == Some("True"),
            };
            let answer = Answer {
                likelihoods: wanted["filtered_resps"].as_array().unwrap().iter().map(likelihood).collect(),
                n_tokens: requests[i].iter().map(|r| r.n_scored).collect(),
            };
            samples.push(sample(i, &task.questions[i], &answer, metrics));
            assert_eq!(&samples[i], wanted, "{name} {i}");
            let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&samples[i]), keys(wanted));
        }
        assert_eq!(hashes_of(samples.iter()), want["task_hash"], "{name}");
        assert_eq!(task.form.version(), want["version"], "{name}");
        for metric in metrics.iter().map(|m| m.name()) {
            let e = estimate(&samples.iter().map(|s| s[metric].as_f64().unwrap()).collect::<Vec<_>>());
            for (key, value) in
                [(format!("{metric},none"), e.mean), (format!("{metric}_stderr,none"), e.error.unwrap())]
            {
                let wanted = want["results"][&key].as_f64().unwrap_or_else(|| panic!("{name} {key}"));
                assert!((value - wanted).abs() < 1e-12, "{name} {key}: {value}, {wanted}");
            }
        }
    }
}

#[test]
fn long_contexts_are_cut_on_the_left() {
    let (_, tokenizer) = tokenizer();
    let task = Task::parse(Path::new("rows"), "t".into(), &rows("boolq"), Rules::LmEval, 1).unwrap();
    let whole = requests(&tokenizer, &task, Rules::LmEval, 8192);
    let cut = requests(&tokenizer, &task, Rules::LmEval, 20);
    for (whole, cut) in whole[0].iter().zip(&cut[0]) {
        assert_eq!(cut.tokens, whole.tokens[whole.tokens.len() - 21..]);
        assert_eq!((cut.input().len(), cut.n_scored), (20, 1));
    }
    // The paper reads the last token, too.
    assert_eq!(requests(&tokenizer, &task, Rules::Paper, 20)[0][0].tokens.len(), 20);
}

/// What is shared between choices, and who else is in the batch, changes nothing; and libllama finds the same.
#[test]
fn likelihoods_are_those_of_each_text_by_itself() {
    let _turn = turn();
    let (_, tokenizer) = tokenizer();
    let model = load(&smollm2());
    let interrupt = || Arc::new(AtomicBool::new(false));
    let context = ContextOptions { n_ctx: Some(256), n_ubatch: 40, n_batch: 40, ..ContextOptions::new(2) };
    let mut session = Session::new(&model, &context, 4, 40, interrupt()).unwrap();
    let mut questions = Vec::new();
    for name in ["piqa", "winogrande", "mosaic_query", "boolq"] {
        let task = Task::parse(Path::new("rows"), name.into(), &rows(name), Rules::LmEval, 2).unwrap();
        questions.extend(requests(&tokenizer, &task, Rules::LmEval, 8192));
    }
    let together: Vec<Vec<Likelihood>> = (questions.chunks(4))
        .flat_map(|group| session.likelihoods(&group.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap())
        .collect();
    let gguf = Arc::new(Gguf::open(&smollm2()).unwrap());
    let whole = ContextOptions { n_ctx: Some(256), ..ContextOptions::new(2) };
    let of_llama =
        libllama::Model::load(gguf, &ModelOptions::new(smollm2()), &mut |_| std::ops::ControlFlow::Continue(()));
    let of_llama = of_llama.unwrap();
    let mut llama = LlamaSession::new(&of_llama, &whole, interrupt()).unwrap();
    for (question, together) in questions.iter().zip(&together) {
        for (request, found) in question.iter().zip(together) {
            let alone = session.likelihoods(&[std::slice::from_ref(request)]).unwrap()[0][0];
            let reference = llama.likelihood(request).unwrap();
            session.rewind(0);
            session.sync(&request.tokens[..=request.first()], &mut |_, _| {}).unwrap();
            let logits = session.logits().to_vec();
            let read = session.likelihood_after(&logits, request).unwrap();
            for (other, who) in [(alone, "alone"), (read, "read"), (reference, "libllama")] {
                assert!((found.sum - other.sum).abs() < 1e-3, "{who}: {found:?} {other:?}");
                assert_eq!(found.is_greedy, other.is_greedy, "{who}");
            }
        }
    }
}

/// The harness with Hugging Face's model, of the same weights in 32 bits, made what is stored (tests/golden/hf_eval).
#[test]
fn likelihoods_are_those_of_hugging_faces_model() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("f32.gguf");
    requantise::requantise(&smollm2(), &whole, ggml::Type::F32);
    let (_, tokenizer) = tokenizer();
    let model = load(&whole);
    let mut context = ContextOptions { n_ctx: Some(512), exact: true, ..ContextOptions::new(2) };
    (context.cache_type_k, context.cache_type_v) = (CacheType::F32, CacheType::F32);
    let mut session = Session::new(&model, &context, 1, 512, Arc::new(AtomicBool::new(false))).unwrap();
    for (name, stored) in golden("hf_eval.json").as_object().unwrap() {
        // Some of each task, so that it takes seconds.
        let task = Task::parse(Path::new("rows"), name.clone(), &rows(name), Rules::LmEval, 2).unwrap();
        for (i, question) in requests(&tokenizer, &task, Rules::LmEval, 8192).iter().enumerate() {
            let found = session.likelihoods(&[question]).unwrap().remove(0);
            let stored: Vec<(f64, bool)> = serde_json::from_value(stored[i].clone()).unwrap();
            assert_eq!(found.len(), stored.len());
            for (found, stored) in found.iter().zip(stored) {
                assert!((found.sum - stored.0).abs() < 1e-3, "{name} {i}: {found:?} {stored:?}");
                assert_eq!(found.is_greedy, stored.1, "{name} {i}");
            }
        }
    }
}

/// A folder with files of rows.
fn folder(tasks: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tasks.iter().for_each(|t| fs::write(dir.path().join(format!("{t}.jsonl")), rows(t)).unwrap());
    dir
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = pp_run();
    command.arg("eval").args(args).current_dir(dir).stdin(Stdio::null());
    command
}

fn eval(dir: &Path, args: &[&str]) -> Output {
    let model = smollm2();
    command(dir, &[&["-m", model.to_str().unwrap(), "-t", "2"], args].concat()).output().unwrap()
}

fn stdout(o: &Output) -> String {
    String::from_utf8(o.stdout.clone()).unwrap()
}

/// The files of a folder whose names begin so, in order.
fn files(dir: &Path, start: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with(start));
    all.sort();
    all
}

#[test]
fn results_are_files_that_can_be_compared() {
    let _turn = turn();
    let dir = folder(&["piqa", "winogrande"]);
    let o = eval(dir.path(), &["--tasks", "piqa,winogrande.jsonl", "-o", "out"]);
    check("dense", &o, 0, "results are in");
    let table = stdout(&o);
    assert!(table.contains("| dense | 0 | piqa | 5 |") && table.contains("| mean of tasks | 8 |"), "{table}");
    let name = smollm2().file_stem().unwrap().to_string_lossy().into_owned();
    let dense = dir.path().join("out").join(&name);
    let results: Value = serde_json::from_str(&fs::read_to_string(&files(&dense, "results_")[0]).unwrap()).unwrap();
    let stored = golden("lm_eval.json");
    // What is of torch and of the harness's own source is not there.
    let not_ours = ["pretty_env_info", "transformers_version", "upper_git_hash"];
    for key in stored["keys"].as_array().unwrap().iter().map(|k| k.as_str().unwrap()) {
        assert_eq!(results.get(key).is_some(), !not_ours.contains(&key), "{key}");
    }
    for task in ["piqa", "winogrande"] {
        assert_eq!(results["task_hashes"][task], stored["tasks"][task]["task_hash"], "{task}");
        assert_eq!(results["n-samples"][task], stored["tasks"][task]["n-samples"]);
        let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&results["results"][task]), keys(&stored["tasks"][task]["results"]));
    }
    assert!(files(&dense, "piqa.part").is_empty() && files(&dense, "samples_").len() == 2);

    let o = eval(dir.path(), &["--tasks", "piqa", "-o", "out", "--read", "--prune", "0.5", "--limit", "4"]);
    check("read", &o, 0, "");
    let read = dir.path().join("out").join(format!("{name}-pp-0.5-read"));
    let compare = |a: &Path, b: &Path| command(dir.path(), &["--compare"]).args([a, b]).output().unwrap();
    check("other questions", &compare(&dense, &read), 65, "task hashes differ");
    let o = eval(dir.path(), &["--tasks", "piqa", "-o", "out", "--read", "--prune", "0.5"]);
    check("read", &o, 0, "");
    // The last file of each task counts.
    let o = compare(&dense, &read);
    check("compare", &o, 0, "");
    assert!(
        stdout(&o).contains("| piqa | acc | 5 |") && stdout(&o).contains("| piqa | acc_norm | 5 |"),
        "{}",
        stdout(&o)
    );
    let of_files = compare(&files(&dense, "samples_piqa")[0], files(&read, "samples_piqa").last().unwrap());
    assert_eq!(stdout(&of_files), stdout(&o));
    check("several", &compare(&dir.path().join("out"), &read), 2, "several runs");
    check("no task in both", &compare(&files(&dense, "samples_wino")[0], &read), 65, "no task is in both");
    check("no samples", &compare(&dir.path().join("piqa.jsonl"), &read), 65, "line 1: is no sample");
}

#[test]
fn what_cannot_be_asked_is_said() {
    let dir = folder(&["piqa"]);
    fs::write(dir.path().join("bad.jsonl"), rows("piqa") + "{\"goal\": \"x\"}\n").unwrap();
    fs::write(dir.path().join("empty.jsonl"), "").unwrap();
    fs::write(dir.path().join("blank.jsonl"), "{\"query\": \"x\", \"choices\": [\"\"], \"gold\": 0}\n").unwrap();
    for (tasks, more, code, part) in [
        ("bad.jsonl", &[][..], 65, "bad.jsonl: line 6: has goal"),
        ("empty.jsonl", &[], 65, "empty.jsonl: has no rows"),
        ("hellaswag", &[], 66, "no rows of the task 'hellaswag'"),
        ("piqa,./piqa.jsonl", &[], 2, "two of them are named 'piqa'"),
        ("piqa", &["--rules", "mine"], 2, "--rules"),
        ("piqa", &["--limit", "0"], 2, "--limit"),
        ("piqa", &["--read"], 2, "needs --prune"),
        ("piqa", &["--methods", "pp"], 2, "needs --ratios"),
        ("piqa", &["--prune", "auto"], 2, "--read"),
        ("piqa", &["--prune", "0.2", "--prune-plan", "uniform"], 2, "--read"),
        ("piqa", &["--rules", "pp"], 65, "too few choices"),
        ("blank.jsonl", &["--rules", "pp"], 65, "blank.jsonl: line 1: a choice has no tokens"),
    ] {
        let args = [&["--tasks", tasks, "-q"], more].concat();
        check(&format!("{args:?}"), &eval(dir.path(), &args), code, part);
    }
}

/// Rows enough for several pieces.
fn many(n: usize) -> String {
    let row = |i: usize| json!({"query": format!("Number {i} is"), "choices": ["even", "an odd one"], "gold": i % 2});
    (0..n).map(|i| format!("{}\n", row(i))).collect()
}

#[test]
fn an_interrupted_run_goes_on() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("numbers.jsonl"), many(40)).unwrap();
    let args = ["--tasks", "numbers", "-o", "out"];
    let whole = eval(dir.path(), &["--tasks", "numbers"]);
    check("whole", &whole, 0, "");
    let part = dir.path().join("out").join(smollm2().file_stem().unwrap()).join("numbers.part");
    let model = smollm2();
    let mut child = command(dir.path(), &[&["-m", model.to_str().unwrap(), "-t", "2"], &args[..]].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let n_lines = || fs::read_to_string(&part).map_or(0, |t| t.lines().count());
    // The head, an empty piece, and the first one.
    while n_lines() < 3 && child.try_wait().unwrap().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let text = fs::read_to_string(&part).unwrap();
    let lines: Vec<&str> = text.split_inclusive('\n').take(3).collect();
    // The last line was cut off.
    fs::write(&part, format!("{}{}", lines.concat(), "[[-3.25, tr")).unwrap();
    let on = eval(dir.path(), &args);
    check("goes on", &on, 0, "goes on after 64 of 80 choices");
    assert_eq!(stdout(&on), stdout(&whole));
    assert!(!part.exists());
    // Of other questions, nothing counts.
    fs::write(&part, lines.concat()).unwrap();
    let other = eval(dir.path(), &["--tasks", "numbers", "-o", "out", "--limit", "35"]);
    check("anew", &other, 0, "70 choices in");
}

#[test]
fn pruned_rows_side_by_side() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("numbers.jsonl"), many(25)).unwrap();
    let run = |more: &[&str]| {
        let o = eval(dir.path(), &[&["--tasks", "numbers", "-o", "out", "--kernels", "ggml"], more].concat());
        check(&format!("{more:?}"), &o, 0, "");
        stdout(&o)
    };
    // 50 rows are two batches and a half: the paper leaves out the rest, which is that of five questions.
    let table = run(&["--rules", "pp", "--methods", "dense,full-batch", "--ratios", "0.2"]);
    assert!(
        table.contains("| dense | 0 | numbers | 20 |") && table.contains("| full-batch | 0.2 | numbers | 20 |"),
        "{table}"
    );
    assert!(run(&["--prune", "0.4"]).contains("| pp | 0.4 | numbers | 25 |"));
    let out = dir.path().join("out");
    let sums = |name: &str| -> Vec<f64> {
        let path = files(&out.join(name), "samples_").pop().unwrap();
        let text = fs::read_to_string(path).unwrap();
        let of_line = |l: &str| serde_json::from_str::<Value>(l).unwrap()["filtered_resps"].as_array().unwrap().clone();
        let sum = |r: Value| r[0].as_str().unwrap().parse::<f64>().unwrap();
        text.lines().flat_map(of_line).map(sum).collect()
    };
    let stem = smollm2().file_stem().unwrap().to_string_lossy().into_owned();
    let (dense, full) = (sums(&format!("{stem}-pp-rules")), sums(&format!("{stem}-full-batch-0.2-pp-rules")));
    assert_eq!((dense.len(), full.len()), (40, 40));
    assert!(dense.iter().zip(&full).any(|(a, b)| (a - b).abs() > 0.1), "something was left out");
}
