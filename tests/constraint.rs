//! Answers of a form: what comes fits it, whatever the model wants to say; and what is cut is said to be.

mod common;

use std::process::{Output, Stdio};

use common::script::Script;
use common::{check, smollm2, tokenizer, tokens_of, turn};
use pp_run::constraint::{Constraint, Form, Grammar, Source};
use pp_run::generate::{Answer, Guide, Limits, Next, Predict, StopReason};
use pp_run::gguf::Gguf;
use pp_run::sampler::{Options as SamplingOptions, Sampler};
use pp_run::tokenizer::{Token, Tokenizer};
use serde_json::{Value, json};

/// Numbers that look random, the same ones each time (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn schema(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 8 } else { 12 }) {
            0 => json!({ "type": "boolean" }),
            1 => json!({ "type": ["null", "integer"] }),
            2 => {
                let least = self.below(200) as i64 - 100;
                json!({ "type": "integer", "minimum": least, "maximum": least + self.below(500) as i64 })
            }
            3 => json!({ "type": "number", "exclusiveMinimum": self.below(10) }),
            4 => json!({ "type": "string", "minLength": self.below(3), "maxLength": 3 + self.below(10) }),
            5 => json!({ "type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}(x|yz)?$" }),
            6 => json!({ "enum": ["red", "gr\u{fc}n", 5, null, [1, { "a": true }]] }),
            7 => {
                let format = ["date", "time", "uuid", "ipv4"][self.below(4)];
                json!({ "type": "string", "format": format })
            }
            8 => {
                let (least, more) = (self.below(3), self.below(4));
                json!({ "type": "array", "items": self.schema(depth - 1), "minItems": least, "maxItems": least + more })
            }
            9 => json!({ "anyOf": [self.schema(depth - 1), self.schema(depth - 1)] }),
            _ => {
                let names = ["name", "a b", "x\"y", "\u{e9}t\u{e9}", "n"];
                let n = self.below(names.len());
                let properties = names[..n].iter().map(|&name| (name.to_owned(), self.schema(depth - 1)));
                let properties = serde_json::Map::from_iter(properties);
                let required: Vec<&str> = names[..n].iter().copied().filter(|_| self.below(2) == 0).collect();
                json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
            }
        }
    }
}

/// A model that says anything, and likes to close what it has opened.
struct Babble {
    random: Random,
    /// Logits of closing marks, of ends and of all others
    likes: Vec<f32>,
}

impl Babble {
    fn new(tokenizer: &Tokenizer, seed: u64) -> Babble {
        let likes = |t: Token| match tokenizer.piece(t, false).as_slice() {
            b"\"" | b"}" | b"]" | b"\"}" => 16.0,
            _ if tokenizer.is_eog(t) => 9.0,
            _ => 0.0,
        };
        Babble { random: Random(seed), likes: (0..tokenizer.n_vocab() as Token).map(likes).collect() }
    }

    fn logits(&mut self) -> Vec<f32> {
        let random = &mut self.random;
        self.likes.iter().map(|l| l + random.below(1000) as f32 / 100.0).collect()
    }
}

/// An answer's text, its tokens, why it ended, and whether it has its form.
fn answer(
    tokenizer: &Tokenizer,
    guide: Guide,
    most: u64,
    seed: u32,
    mut says: impl FnMut(usize) -> Vec<f32>,
) -> (String, Vec<Token>, StopReason, Option<bool>) {
    let sampling = SamplingOptions { seed: Some(seed), top_k: 0, ..Default::default() };
    let sampler = Sampler::new(&sampling, tokenizer.n_vocab(), 4096, &tokenizer.eog_tokens(), None);
    let limits = Limits { predict: Predict::AtMost(most), stop: Vec::new(), special: false };
    let mut answer = Answer::new(limits, tokenizer, sampler, guide, 4096);
    let mut text = String::new();
    for i in 0.. {
        let step = answer.push(&says(i)).unwrap();
        text += &step.text;
        if let Next::Stop(_) = step.next {
            break;
        }
    }
    let whole = answer.is_whole();
    let (tokens, stop) = answer.finish();
    (text, tokens, stop, whole)
}

fn schema(schema: &Value) -> Grammar {
    Grammar::new(&Form::Schema(Source::Text(schema.to_string()))).unwrap_or_else(|e| panic!("{schema}: {e}"))
}

#[test]
fn what_comes_of_two_hundred_schemas_fits_them() {
    let (_, words) = tokenizer();
    // For most of them a vocabulary of bytes and letters, which is quick to prepare.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    Script::saying(&["x"]).write(&path, 64);
    let letters = Tokenizer::load(&Gguf::open(&path).unwrap()).unwrap();
    let mut random = Random(1);
    let (mut n_whole, mut n) = (0, 0);
    for i in 0..200 {
        let form = random.schema(3);
        let tokenizer = if i % 10 == 0 { &words } else { &letters };
        let constraint = Constraint::new(&schema(&form), tokenizer).unwrap();
        let mut babble = Babble::new(tokenizer, i);
        let guide = Guide { constraint: Some(constraint), ..Guide::default() };
        let (text, tokens, stop, whole) = answer(tokenizer, guide, 300, i as u32, |_| babble.logits());
        n += tokens.len();
        let value = serde_json::from_str::<Value>(&text);
        if whole == Some(true) {
            n_whole += 1;
            let value = value.unwrap_or_else(|e| panic!("{form}: {text}: {e}"));
            assert!(jsonschema::validator_for(&form).unwrap().is_valid(&value), "{form}: {text}");
        } else {
            assert_eq!(stop, StopReason::Limit, "{form}: {text}");
        }
    }
    assert!(n_whole > 150, "{n_whole} whole answers of {n} tokens");
}

#[test]
fn what_a_model_thinks_has_no_form() {
    let (_, tokenizer) = tokenizer();
    let constraint = Constraint::new(&schema(&json!({ "type": "integer" })), &tokenizer).unwrap();
    let says = |text: &str| {
        let tokens = tokens_of(&tokenizer, text);
        let n_vocab = tokenizer.n_vocab();
        move |i: usize| {
            let mut logits = vec![0.0; n_vocab];
            if let Some(&t) = tokens.get(i) {
                logits[t as usize] = 50.0;
            }
            logits
        }
    };
    let end = |n: usize| "<|im_end|>".repeat(n);
    let marks = Some(["<think>", "</think>"]);
    // Begun by the model, begun by the prompt, not begun; ended in the midst of a thought.
    for (marks, opened, text, want) in [
        (marks, None, format!("<think>\nSeven?\n</think>7{}", end(9)), "<think>\nSeven?\n</think>7"),
        (marks, Some("</think>"), format!("Seven?\n</think>\n\n7{}", end(9)), "Seven?\n</think>7"),
        (marks, None, format!("7{}", end(9)), "7"),
        (None, Some("</think>"), format!("Seven? {}7{}", end(1), end(9)), "Seven? </think>"),
    ] {
        let guide = Guide { constraint: Some(constraint.anew().unwrap()), marks, opened, ..Guide::default() };
        let (got, _, stop, whole) = answer(&tokenizer, guide, 60, 1, says(&text));
        // Where the text does not fit, any other token may come that does.
        assert!(got.starts_with(want) || opened.is_some(), "{got}");
        assert_eq!((stop, whole), (StopReason::EndOfText, Some(true)), "{got}");
        let number = got.rsplit("</think>").next().unwrap();
        assert!(number.trim().parse::<i128>().is_ok(), "{got}");
    }
    // Cut within a thought.
    let guide = Guide { constraint: Some(constraint), marks, opened: Some("</think>"), ..Guide::default() };
    let (_, _, stop, whole) = answer(&tokenizer, guide, 3, 1, says("one two three four five"));
    assert_eq!((stop, whole), (StopReason::Limit, Some(false)));
}

fn pp_run(args: &[&str]) -> Output {
    let model = smollm2();
    let mut command = common::pp_run();
    command.args(["-m", model.to_str().unwrap(), "--seed", "1"]).args(args).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_program_keeps_to_schemas_and_grammars() {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let person = json!({
        "type": "object",
        "properties": { "name": { "type": "string", "maxLength": 20 }, "age": { "type": "integer", "minimum": 0, "maximum": 150 } },
        "required": ["name", "age"],
        "additionalProperties": false
    });
    let path = file("person.json", &person.to_string());
    let validator = jsonschema::validator_for(&person).unwrap();
    let ask = ["-p", "Describe a sailor as JSON, with name and age."];
    for flags in [&["--json-schema", &path][..], &["-j", &person.to_string()], &["-jf", &path, "--temp", "0"]] {
        let output = pp_run(&[&ask[..], flags].concat());
        check("schema", &output, 0, "end_of_text");
        assert!(validator.is_valid(&serde_json::from_slice(&output.stdout).unwrap()), "{output:?}");
    }
    let any = pp_run(&[&ask[..], &["--json"]].concat());
    check("json", &any, 0, "");
    assert!(serde_json::from_slice::<Value>(&any.stdout).is_ok_and(|v| v.is_object() || v.is_array()), "{any:?}");
    let object = pp_run(&[&ask[..], &["--json-schema", &path, "--output-format", "json"]].concat());
    let object: Value = serde_json::from_slice(&object.stdout).unwrap();
    assert_eq!(object["complete"], true);
    assert!(validator.is_valid(&serde_json::from_str(object["text"].as_str().unwrap()).unwrap()), "{object}");

    // An answer that is cut is marked.
    let cut = pp_run(&[&ask[..], &["-jf", &path, "-n", "3"]].concat());
    check("cut", &cut, 0, "cut after 3 tokens (limit), before it had its form");
    assert!(serde_json::from_slice::<Value>(&cut.stdout).is_err());
    let cut = pp_run(&[&ask[..], &["-jf", &path, "-n", "3", "--output-format", "json"]].concat());
    assert_eq!(serde_json::from_slice::<Value>(&cut.stdout).unwrap()["complete"], false);

    let grammar = file("yes.gbnf", "root ::= (\"yes\" | \"no\") \", \" [a-z ]{5,40} \".\"");
    for flags in [["--grammar-file", &grammar], ["--grammar", "root ::= \"yes, \" [a-z ]{5,40} \".\""]] {
        let output = pp_run(&[&["-p", "Is the sea salty?"][..], &flags].concat());
        check("grammar", &output, 0, "end_of_text");
        let text = String::from_utf8(output.stdout).unwrap();
        let (head, tail) = text.trim_end().split_once(", ").unwrap();
        assert!(["yes", "no"].contains(&head) && tail.ends_with('.') && tail.len() < 42, "{text}");
    }
    // What is wrong is said before the model is loaded: this one cannot be.
    let broken = file("broken.gguf", "");
    for (flags, code, part) in [
        (["--json-schema", "{"], 2, "--json-schema: the schema is not JSON"),
        (["--json-schema", &file("half.json", "{\"type\":")], 65, "half.json: the schema is not JSON"),
        (
            ["--json-schema", &file("none.json", "{\"type\":\"integer\",\"minimum\":2,\"maximum\":1}")],
            65,
            "nsatisfiable",
        ),
        (["--json-schema", "none-of-this"], 66, "none-of-this: cannot be read"),
        (["--grammar", "root ::= x"], 2, "--grammar: there is no rule 'x'"),
        (
            ["--grammar-file", &file("bad.gbnf", "root ::= \"a\"\nx ::=) ")],
            65,
            "bad.gbnf: line 2: ')' was not expected",
        ),
    ] {
        check(part, &pp_run(&[&["-m", &broken, "-p", "x"][..], &flags].concat()), code, part);
    }
}
