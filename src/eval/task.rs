//! The rows of a file.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::question::{Form, Question};
use super::rules::Rules;
use crate::error::{Error, Result};

/// Lines of an item of llama-perplexity's HellaSwag: the context, the number of the right ending, and four endings.
const LINES: usize = 6;

/// A task: the questions of a file.
#[derive(Debug)]
pub struct Task {
    /// Its name in tables and files
    pub name: String,
    /// What its rows have
    pub form: Form,
    /// Its questions
    pub questions: Vec<Question>,
    /// Line of each question's row in the file, from 1 on
    pub lines: Vec<usize>,
    /// Rows of the file
    pub n_rows: usize,
}

/// The name of the task whose rows a file has: lm-evaluation-harness's, where it has one.
pub fn name_of_file(path: &Path) -> String {
    let stem = path.file_stem().map_or_else(|| "rows".into(), |s| s.to_string_lossy());
    let name: String = stem.chars().map(|c| if c.is_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if name == "openbook_qa" { "openbookqa".into() } else { name }
}

impl Task {
    /// The first `limit` questions of a file's text. [`crate::error::Kind::Malformed`] names the first line that is wrong.
    pub fn parse(path: &Path, name: String, text: &str, rules: Rules, limit: usize) -> Result<Task> {
        let wrong = |line: usize, why: String| Error::malformed(format!("line {line}: {why}")).in_file(path);
        let rows = match text.trim_start().starts_with('{') {
            true => json_rows(text),
            false => hellaswag_rows(text),
        };
        let mut form = None;
        let (mut questions, mut lines, mut n_rows) = (Vec::new(), Vec::new(), 0);
        for (line, row) in rows {
            n_rows += 1;
            if n_rows > limit {
                continue;
            }
            let row = row.map_err(|e| wrong(line, e))?;
            let of_row = Form::of(&row);
            let form = *form.get_or_insert(of_row.ok_or_else(|| wrong(line, unknown(&row)))?);
            if of_row != Some(form) {
                let (fields, here) = (form.fields(), keys(&row));
                return Err(wrong(line, format!("has {here}, and the first row has {fields}")));
            }
            questions.push(Question::of(form, &row, rules).map_err(|e| wrong(line, e))?);
            lines.push(line);
        }
        let form = form.ok_or_else(|| Error::malformed("has no rows").in_file(path))?;
        Ok(Task { name, form, questions, lines, n_rows })
    }
}

type Rows<'a> = Box<dyn Iterator<Item = (usize, Result<Map<String, Value>, String>)> + 'a>;

/// A row in each line that is not empty.
fn json_rows(text: &str) -> Rows<'_> {
    let row = |line: &str| match serde_json::from_str(line) {
        Ok(Value::Object(row)) => Ok(row),
        Ok(_) => Err("is no JSON object".to_owned()),
        Err(e) => Err(format!("is no JSON: {e}")),
    };
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    Box::new(lines.map(move |(i, l)| (i + 1, row(l))))
}

/// llama-perplexity's HellaSwag: the line of a row is that of its context.
fn hellaswag_rows(text: &str) -> Rows<'_> {
    let lines: Vec<&str> = text.lines().collect();
    let n = lines.len() - lines.iter().rev().take_while(|l| l.trim().is_empty()).count();
    let row = |lines: &[&str]| match lines {
        [query, gold, endings @ ..] if endings.len() == LINES - 2 => {
            let gold = gold.trim();
            let gold: u64 = gold.parse().map_err(|_| {
                format!("is no JSON object, and as llama-perplexity's HellaSwag its second line is '{gold}', no number")
            })?;
            let row = json!({"query": query, "choices": endings, "gold": gold});
            Ok(row.as_object().cloned().unwrap_or_default())
        }
        _ => Err(format!(
            "is no JSON object, and as llama-perplexity's HellaSwag it has {} lines of {LINES}",
            lines.len()
        )),
    };
    let rows: Vec<_> = lines[..n].chunks(LINES).enumerate().map(|(i, lines)| (i * LINES + 1, row(lines))).collect();
    Box::new(rows.into_iter())
}

fn keys(row: &Map<String, Value>) -> String {
    row.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn unknown(row: &Map<String, Value>) -> String {
    format!("has {}: no known form of rows (see pp-run help eval)", keys(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Task> {
        Task::parse(Path::new("t.jsonl"), "t".into(), text, Rules::LmEval, usize::MAX)
    }

    #[test]
    fn wrong_rows_are_named_with_their_line() {
        let good = r#"{"query": "q", "choices": ["a", "b"], "gold": 1}"#;
        for (bad, part) in [
            ("{\"query\": ", "line 3: is no JSON"),
            ("[1]", "line 3: is no JSON object"),
            (r#"{"goal": "", "sol1": "", "sol2": "", "label": 0}"#, "line 3: has goal"),
            (r#"{"query": "q", "choices": ["a"], "gold": 1}"#, "line 3: 'gold' is 1"),
            (r#"{"text": "q"}"#, "line 3: has text"),
        ] {
            let error = parse(&format!("{good}\n\n{bad}\n")).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(parse("").unwrap_err().to_string().contains("has no rows"));
        assert!(parse(r#"{"text": "q"}"#).unwrap_err().to_string().contains("no known form"));
    }

    #[test]
    fn six_lines_are_an_item_of_hellaswag() {
        let item = "Cooking: She\r\n2\r\na\r\nb\r\nc\r\nd\r\n";
        let task = parse(&format!("{item}{item}")).unwrap();
        assert_eq!((task.questions.len(), task.questions[1].gold, &task.lines[..]), (2, 2, &[1, 7][..]));
        assert_eq!(task.questions[0].pairs[3].continuation, " d");
        let error = parse(&format!("{item}{}", &item[..20])).unwrap_err().to_string();
        assert!(error.contains("line 7: is no JSON object"), "{error}");
        assert!(parse(&item.replace('2', "4")).unwrap_err().to_string().contains("line 1: 'gold' is 4"));
    }

    #[test]
    fn names_are_lm_evals() {
        assert_eq!(name_of_file(Path::new("/a/openbook_qa.jsonl")), "openbookqa");
        assert_eq!(name_of_file(Path::new("my-rows 1.jsonl")), "my_rows_1");
    }
}
