//! Answers of a form: a JSON schema or a grammar says which tokens may come next. llguidance does the work; this module gives it grammars
//! and vocabularies. It never sees a model.

mod gbnf;

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use crate::error::{Error, Kind, Result};
use crate::tokenizer::{Token, Tokenizer};

/// Longest schema or grammar, in bytes.
const MAX_LENGTH: u64 = 1 << 20;

/// The form that answers are to have, as the user says it.
#[derive(Debug, Clone, PartialEq)]
pub enum Form {
    /// Any object or array of JSON
    Json,
    /// What fits a JSON schema
    Schema(Source),
    /// What fits a grammar in llama.cpp's notation (GBNF)
    Grammar(Source),
}

/// A text, or the file that has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// The text itself
    Text(String),
    /// Where it is
    File(PathBuf),
}

impl Source {
    /// The text. [`Kind::Input`] if the file cannot be read.
    fn read(&self) -> Result<String> {
        let path = match self {
            Source::Text(text) => return Ok(text.clone()),
            Source::File(path) => path,
        };
        let mut text = String::new();
        let read = fs::File::open(path).and_then(|f| f.take(MAX_LENGTH + 1).read_to_string(&mut text));
        match read {
            Ok(n) if n as u64 > MAX_LENGTH => {
                Err(Error::malformed(format!("is longer than {MAX_LENGTH} bytes")).in_file(path))
            }
            Ok(_) => Ok(text),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(Error::malformed("is no text in UTF-8").in_file(path))
            }
            Err(e) => Err(Error::input(format!("cannot be read: {e}")).in_file(path)),
        }
    }

    /// What is wrong with it: [`Kind::Malformed`] of a file, [`Kind::Usage`] of a text.
    fn refused(&self, flag: &str, what: &str) -> Error {
        match self {
            Source::Text(_) => Error::usage(format!("{flag}: {what}")),
            Source::File(path) => Error::malformed(what).in_file(path),
        }
    }
}

/// A form that was read and found to be possible.
#[derive(Debug, Clone)]
pub struct Grammar {
    grammar: TopLevelGrammar,
}

impl Grammar {
    /// Reads a form. An error if it is broken, or if no text has it.
    pub fn new(form: &Form) -> Result<Grammar> {
        let (source, flag) = match form {
            Form::Json => {
                let schema = json!({ "type": ["object", "array"] });
                return Ok(Grammar { grammar: TopLevelGrammar::from_json_schema(with_whitespace(schema)) });
            }
            Form::Schema(source) => (source, "--json-schema"),
            Form::Grammar(source) => (source, "--grammar"),
        };
        let text = source.read()?;
        let grammar = match form {
            Form::Grammar(_) => TopLevelGrammar::from_lark(gbnf::lark(&text).map_err(|e| source.refused(flag, &e))?),
            _ => {
                let schema: Value = serde_json::from_str(&text)
                    .map_err(|e| source.refused(flag, &format!("the schema is not JSON: {e}")))?;
                if !schema.is_object() && !schema.is_boolean() {
                    return Err(source.refused(flag, "a schema is an object, true or false"));
                }
                TopLevelGrammar::from_json_schema(with_whitespace(schema))
            }
        };
        let grammar = Grammar { grammar };
        // A vocabulary of single bytes finds what is wrong before a model is loaded.
        let words = (0..=u8::MAX).map(|b| vec![b]).chain([b"\xff<end>".to_vec()]).collect();
        let mut alone = Constraint::of_words(&grammar, words, &[256]).map_err(|e| source.refused(flag, &e))?;
        alone.mask().map_err(|e| source.refused(flag, &e.to_string()))?;
        Ok(grammar)
    }
}

/// Where JSON may have spaces: one, or a line break and what indents the next line. Any number of them would let a model write them for ever.
const WHITESPACE: &str = r"( |\n[ \t]{0,20})?";

/// A schema with what llguidance is to know of spaces.
fn with_whitespace(schema: Value) -> Value {
    let mut map = match schema {
        Value::Object(map) => map,
        Value::Bool(true) => Default::default(),
        other => return other,
    };
    map.insert("x-guidance".to_owned(), json!({ "whitespace_pattern": WHITESPACE }));
    Value::Object(map)
}

/// Which tokens may come next in an answer.
pub struct Constraint {
    matcher: Matcher,
    n_vocab: usize,
    /// Logits without those of tokens that may not come
    masked: Vec<f32>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("n_vocab", &self.n_vocab).finish_non_exhaustive()
    }
}

impl Constraint {
    /// A constraint on the tokens of a vocabulary. Control tokens are no text, and never come inside of the form; those that end a generation
    /// come where the form may end.
    pub fn new(grammar: &Grammar, tokenizer: &Tokenizer) -> Result<Constraint> {
        let n_vocab = tokenizer.n_vocab();
        let word = |t: Token| match tokenizer.piece(t, false) {
            text if text.is_empty() => [&[TokTrie::SPECIAL_TOKEN_MARKER], &tokenizer.piece(t, true)[..]].concat(),
            text => text,
        };
        let mut words: Vec<Vec<u8>> = (0..n_vocab as Token).map(word).collect();
        let mut ends: Vec<u32> = tokenizer.eog_tokens().iter().map(|&t| t as u32).collect();
        if ends.is_empty() {
            // llguidance wants one. A token that there is not is never drawn.
            ends.push(n_vocab as u32);
            words.push(b"\xff<end>".to_vec());
        }
        Constraint::of_words(grammar, words, &ends)
            .map_err(|e| Error::failed(format!("the form cannot be had of this model's tokens: {e}")))
    }

    fn of_words(grammar: &Grammar, words: Vec<Vec<u8>>, ends: &[u32]) -> Result<Constraint, String> {
        let n_vocab = words.len();
        let info = TokRxInfo::new(n_vocab as u32, ends[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(ends);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let make = || {
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
            factory.quiet();
            let limits = factory.limits_mut();
            limits.verbose_errors = false;
            // Each takes up to 2 kB.
            limits.max_lexer_states = 50_000;
            // Grammars of single characters have many items: a mask is made only where the model says what does not fit.
            limits.step_max_items = 2_000_000;
            factory.create_parser(grammar.grammar.clone())
        };
        let parser = make().map_err(|e| first_line(&format!("{e:#}")))?;
        let matcher = Matcher::new(Ok(parser));
        match matcher.get_error() {
            Some(e) => Err(first_line(&e)),
            None => Ok(Constraint { matcher, n_vocab, masked: Vec::new() }),
        }
    }

    /// The same constraint for an answer that begins, which changes nothing in this one.
    pub fn anew(&self) -> Result<Constraint> {
        let mut matcher = self.matcher.deep_clone();
        matcher.reset().map_err(|e| failed(&e))?;
        Ok(Constraint { matcher, n_vocab: self.n_vocab, masked: Vec::new() })
    }

    /// Takes a token, if it may come next, and says whether it did.
    pub fn take(&mut self, token: Token) -> Result<bool> {
        let token = u32::try_from(token).expect("tokens are not negative");
        self.matcher.try_consume_tokens(&[token]).map(|n| n == 1).map_err(|e| failed(&e))
    }

    /// The logits without those of tokens that may not come next; `also` may.
    pub fn masked(&mut self, logits: &[f32], also: Option<Token>) -> Result<&[f32]> {
        let mask = self.mask()?;
        let may = |t: usize| mask.is_allowed(t as u32) || also.is_some_and(|a| a as usize == t);
        self.masked.clear();
        self.masked.extend(logits.iter().enumerate().map(|(t, &l)| if may(t) { l } else { f32::NEG_INFINITY }));
        Ok(&self.masked)
    }

    fn mask(&mut self) -> Result<toktrie::SimpleVob> {
        let mask = self.matcher.compute_mask().map_err(|e| failed(&e))?;
        match mask.is_zero() {
            true => Err(Error::failed("no text of the form goes on here")),
            false => Ok(mask),
        }
    }

    /// Whether nothing can follow what was taken.
    pub fn is_done(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Whether what was taken has the form.
    pub fn is_whole(&mut self) -> bool {
        self.matcher.is_accepting().unwrap_or(false)
    }
}

fn failed(e: &impl fmt::Display) -> Error {
    Error::new(Kind::Failed, format!("the form of the answer is too complex: {}", first_line(&e.to_string())))
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default().to_owned()
}

/// The source of a form: a file, unless `is_text` says that it is the text itself.
pub fn source(value: &str, is_text: impl Fn(&str) -> bool) -> Source {
    if is_text(value.trim_start()) { Source::Text(value.to_owned()) } else { Source::File(Path::new(value).to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(form: fn(Source) -> Form, text: &str) -> Result<Grammar> {
        Grammar::new(&form(Source::Text(text.to_owned())))
    }

    /// Whether a text has the form. Its bytes are the tokens.
    fn fits(grammar: &Grammar, text: &str) -> bool {
        let words = (0..=u8::MAX).map(|b| vec![b]).chain([b"\xff<end>".to_vec()]).collect();
        let mut constraint = Constraint::of_words(grammar, words, &[256]).unwrap();
        let taken = text.bytes().all(|b| constraint.take(b.into()).unwrap());
        taken && constraint.is_whole()
    }

    #[track_caller]
    fn check(grammar: &str, good: &[&str], bad: &[&str]) {
        let read = text(Form::Grammar, grammar).unwrap();
        good.iter().for_each(|t| assert!(fits(&read, t), "'{t}' fits {grammar}"));
        bad.iter().for_each(|t| assert!(!fits(&read, t), "'{t}' does not fit {grammar}"));
    }

    #[test]
    fn grammars_are_read_as_llama_cpp_reads_them() {
        check("root ::= \"yes\" | \"no\"", &["yes", "no"], &["", "y", "yesno", "maybe"]);
        // What is long enough for one part may belong to the next.
        check(
            "root ::= [a-z]+ [a-z] \"c\" | (\"a\" | \"ab\") \"bd\"",
            &["xyc", "abcc", "abd", "abbd"],
            &["xc", "ab", "abbbd"],
        );
        check("root ::= \"a\"{2,3} \"b\"? [^a-z\\n]* .", &["aa!", "aaab12\n", "aaax"], &["a!", "aabb!x", "aa"]);
        check(
            "root ::= \"\\x41\\u00e9\\t\\\"[\" [\\]\\\\-]",
            &["A\u{e9}\t\"[]", "A\u{e9}\t\"[-", "A\u{e9}\t\"[\\"],
            &["A"],
        );
        check("root ::= (\"a\" # one\n | \"b\")+ end\n\nend ::=\n  \"!\" | # nothing\n", &["a!", "ba"], &["!", ""]);
        let json = r#"
            root   ::= value
            value  ::= object | array | string | number | "true" | "null"
            object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
            array  ::= "[" ws ( value ("," ws value)* )? "]" ws
            string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
            number ::= "-"? ([0-9] | [1-9] [0-9]{0,15}) ("." [0-9]+)? ws
            ws     ::= | " " | "\n" [ \t]{0,20}
        "#;
        check(
            json,
            &[r#"{"a":[1,-2.5,{"\u00e9":"x\n"}], "b": null}"#, "[]", "\"\u{1f600}\""],
            &["{", "[1,]", "01", "\"\n\""],
        );
        // A rule that never ends is no way out, and left recursion is one.
        check("root ::= \"a\" | \"b\" root2\nroot2 ::= \"x\" root2", &["a"], &["b"]);
        check("root ::= root \"+\" [0-9] | [0-9]", &["1", "1+2+3"], &["1+", "+1"]);
    }

    #[test]
    fn broken_grammars_say_where() {
        let deep = format!("root ::= {}\"a\"{}", "(".repeat(500), ")".repeat(500));
        let wide = format!("root ::= {}", (0x4e00..0x4e00 + 3000).map(|c| format!("[\\u{c:04x}]")).collect::<String>());
        for (grammar, part) in [
            ("", "no rule 'root'"),
            ("root = \"a\"", "'::=' was expected, and not '='"),
            ("root ::= \"a\n\"\nx ::= y", "no rule 'y'"),
            ("root ::= a\na ::= \"x\" a", "no text fits"),
            ("root ::= []", "no text fits"),
            ("root ::= \"a", "line 1: the grammar ends inside"),
            ("root ::= \"a\"\n\nx ::= [z-a]", "line 3: a range"),
            ("root ::= (\"a\"", "')' was expected, and not the end"),
            ("root ::= *", "nothing before '*'"),
            ("root ::= \"a\"{3,2}", "more than the most"),
            ("root ::= \"a\"{99999}", "more than 2000"),
            ("root ::= \"a\"{99999999999}", "more than 2000"),
            ("root ::= <think>", "not supported"),
            ("root ::= \"\\ud800\"", "hexadecimal digits of a character"),
            ("root ::= \"\\q\"", "means nothing"),
            (&deep, "nested deeper than 100"),
            (&wide, "more than 2000 different classes"),
        ] {
            let e = text(Form::Grammar, grammar).map(drop).unwrap_err();
            assert!(e.kind() == Kind::Usage && e.to_string().contains(part), "{grammar:.80}: {e}");
        }
    }

    /// Whatever a file has, it is read or refused.
    #[test]
    fn changed_schemas_and_grammars_are_no_crash() {
        let schema = r##"{"type":"object","properties":{"a":{"$ref":"#/$defs/b"},"c":{"type":"string","pattern":"^[a-z]{2,3}$","format":"date"}},"required":["a"],"$defs":{"b":{"anyOf":[{"type":"integer","minimum":-3,"multipleOf":2},{"type":"array","items":{"enum":[1,"x",null]},"minItems":1}]}}}"##;
        let grammar = "root ::= (\"a\" | [b-d\\x41]{2,5})* x+ # end\nx ::= \"(\" root? \")\" | .\n";
        let mut seed = 7u64;
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % n
        };
        for i in 0..300 {
            for (form, text, parts) in [
                (
                    Form::Schema as fn(Source) -> Form,
                    schema,
                    &["{", "}", "[", "]", "\"", ",", ":", "-", "0", "9", "\\u00", "type", "false"][..],
                ),
                (
                    Form::Grammar,
                    grammar,
                    &["(", ")", "[", "]", "\"", "{", "}", "*", "|", "\n", "9", "\\x", "::=", "^", "-", "x"],
                ),
            ] {
                let mut text = text.as_bytes().to_vec();
                for _ in 0..=i % 4 {
                    let (at, n) = (random(text.len()), random(3));
                    let to = (at + n).min(text.len());
                    text.splice(at..to, parts[random(parts.len())].bytes());
                }
                let text = String::from_utf8_lossy(&text).into_owned();
                if let Err(e) = Grammar::new(&form(Source::Text(text.clone()))) {
                    assert!(e.kind() == Kind::Usage && !e.to_string().contains("panic"), "{text}: {e}");
                }
            }
        }
    }

    #[test]
    fn schemas_are_read_and_impossible_ones_refused() {
        let point = text(
            Form::Schema,
            r#"{"type":"object","properties":{"x":{"type":"integer"}},"required":["x"],"additionalProperties":false}"#,
        );
        let point = point.unwrap();
        assert!(fits(&point, "{\"x\": 5}") && fits(&point, "{\"x\":-1}") && fits(&point, "{\n  \"x\": 5\n}"));
        assert!(!fits(&point, "{}") && !fits(&point, "{\"x\": 1.5}") && !fits(&point, "{\"x\":    5}"));
        let any = Grammar::new(&Form::Json).unwrap();
        assert!(fits(&any, "[1, {\"a\": null}]") && !fits(&any, "1"));
        for (schema, part) in [
            ("{", "not JSON"),
            ("[]", "an object, true or false"),
            ("false", "nsatisfiable"),
            (r#"{"type":"integer","minimum":2,"maximum":1}"#, "nsatisfiable"),
            (r#"{"enum":[]}"#, "--json-schema: "),
            (r##"{"$ref":"#/$defs/none"}"##, "--json-schema: "),
            (r#"{"$ref":"https://example.com/schema"}"#, "--json-schema: "),
            (r#"{"type":"nothing"}"#, "--json-schema: "),
            (r#"{"type":"object","patternProperties":{"(":{}}}"#, "--json-schema: "),
            (r#"{"type":"string","pattern":"("}"#, "--json-schema: "),
        ] {
            let e = text(Form::Schema, schema).map(drop).unwrap_err();
            assert!(e.kind() == Kind::Usage && e.to_string().contains(part), "{schema}: {e}");
            assert!(!e.to_string().contains("panic"), "{e}");
        }
    }
}
