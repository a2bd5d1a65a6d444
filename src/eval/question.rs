//! From a row of a known data set to a question: its contexts, their continuations, and which of them is right.

use serde_json::{Map, Value, json};

use super::metrics::Metric;
use super::python::{capitalize, strip, strip_start};
use super::rules::{Pair, Rules};

/// What rows have, by which they are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// BoolQ: `passage`, `question`, `label`
    Boolq,
    /// PIQA: `goal`, `sol1`, `sol2`, `label`
    Piqa,
    /// HellaSwag: `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`
    Hellaswag,
    /// WinoGrande: `sentence`, `option1`, `option2`, `answer`
    Winogrande,
    /// ARC: `question`, `choices` with `text` and `label`, `answerKey`
    Arc,
    /// OpenBookQA: `question_stem`, `choices` with `text` and `label`, `answerKey`
    Openbookqa,
    /// MosaicML's: `query`, which is the whole context, `choices`, `gold`; so are the six lines of llama-perplexity's HellaSwag
    Query,
    /// MosaicML's: `context_options`, `continuation`, `gold`
    ContextOptions,
}

/// The fields of each form. The first form of which a row has all is its own.
const FIELDS: [(Form, &[&str]); 8] = [
    (Form::Hellaswag, &["activity_label", "ctx_a", "ctx_b", "endings", "label"]),
    (Form::Boolq, &["passage", "question", "label"]),
    (Form::Piqa, &["goal", "sol1", "sol2", "label"]),
    (Form::Winogrande, &["sentence", "option1", "option2", "answer"]),
    (Form::Openbookqa, &["question_stem", "choices", "answerKey"]),
    (Form::Arc, &["question", "choices", "answerKey"]),
    (Form::Query, &["query", "choices", "gold"]),
    (Form::ContextOptions, &["context_options", "continuation", "gold"]),
];

impl Form {
    /// The form of a row, if it is known.
    pub fn of(row: &Map<String, Value>) -> Option<Form> {
        let has_all = |fields: &[&str]| fields.iter().all(|f| row.contains_key(*f));
        FIELDS.iter().find(|(_, fields)| has_all(fields)).map(|(form, _)| *form)
    }

    /// What rows of this form have.
    pub fn fields(self) -> String {
        FIELDS.iter().find(|f| f.0 == self).map_or(String::new(), |f| f.1.join(", "))
    }

    /// Version of lm-evaluation-harness's task for such rows; 0 if it has none.
    pub fn version(self) -> f64 {
        match self {
            Form::Boolq => 2.0,
            Form::Query | Form::ContextOptions => 0.0,
            _ => 1.0,
        }
    }

    /// How each context begins, as lm-evaluation-harness's configurations say it.
    pub fn template(self) -> &'static str {
        match self {
            Form::Boolq => "{{passage}}\nQuestion: {{question}}?\nAnswer:",
            Form::Piqa => "Question: {{goal}}\nAnswer:",
            Form::Hellaswag | Form::Query => "{{query}}",
            Form::Winogrande => "the sentence up to _, and an option",
            Form::Arc => "Question: {{question}}\nAnswer:",
            Form::Openbookqa => "question_stem",
            Form::ContextOptions => "context_options",
        }
    }

    /// What is measured by these rules.
    pub fn metrics(self, rules: Rules) -> &'static [Metric] {
        match (rules, self) {
            (Rules::Paper, _) => &[Metric::CsrAccuracy, Metric::CsrAccuracyNorm],
            (Rules::LmEval, Form::Boolq | Form::Winogrande | Form::ContextOptions) => &[Metric::Acc],
            (Rules::LmEval, _) => &[Metric::Acc, Metric::AccNorm],
        }
    }
}

/// A question with choices.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The row as lm-evaluation-harness has it
    pub doc: Value,
    /// Its choices
    pub pairs: Vec<Pair>,
    /// Characters of each choice, without the space before it
    pub lengths: Vec<usize>,
    /// The right choice
    pub gold: usize,
    /// What lm-evaluation-harness calls its target
    pub target: String,
}

/// What makes a question of some choices.
struct Asked {
    contexts: Vec<String>,
    choices: Vec<String>,
    gold: usize,
    target: String,
}

/// A row, for one look-up after another: each error says what is wrong.
struct Row<'a>(&'a Map<String, Value>);

impl Question {
    /// The question of a row of this form. The error says what is wrong with it.
    pub fn of(form: Form, row: &Map<String, Value>, rules: Rules) -> Result<Question, String> {
        let r = Row(row);
        let mut doc = row.clone();
        let is_paper = rules == Rules::Paper;
        let asked = match form {
            Form::Boolq => {
                let (passage, question) = (r.text("passage")?, r.text("question")?);
                let label = r.number("label", 2)?;
                let context = format!("{passage}\nQuestion: {question}?\nAnswer:");
                // Of equals the first is taken, and the two have them in another order.
                let (choices, gold) = if is_paper { (["yes", "no"], 1 - label) } else { (["no", "yes"], label) };
                let choices = choices.map(str::to_owned).to_vec();
                Asked { contexts: vec![context], choices, gold, target: label.to_string() }
            }
            Form::Piqa => {
                let goal = r.text("goal")?;
                let context = if is_paper { goal.to_owned() } else { format!("Question: {goal}\nAnswer:") };
                let choices = vec![r.text("sol1")?.to_owned(), r.text("sol2")?.to_owned()];
                Asked::one(context, choices, r.number("label", 2)?)
            }
            Form::Hellaswag => {
                let ctx =
                    format!("{}: {} {}", r.text("activity_label")?, r.text("ctx_a")?, capitalize(r.text("ctx_b")?));
                let choices: Vec<String> = r.texts("endings")?.into_iter().map(preprocess).collect();
                let gold = r.number("label", choices.len())?;
                let context = preprocess(&ctx);
                doc.insert("query".into(), json!(context));
                doc.insert("choices".into(), json!(choices));
                doc.insert("gold".into(), json!(gold));
                Asked::one(context, choices, gold)
            }
            Form::Winogrande => {
                let (before, after) = r.text("sentence")?.split_once('_').ok_or("'sentence' has no _")?;
                let gold = r.number("answer", 3)?.checked_sub(1).ok_or("'answer' is 0, expected 1 or 2")?;
                let contexts = [r.text("option1")?, r.text("option2")?].map(|o| format!("{before}{o}"));
                Asked::two_contexts(contexts.to_vec(), strip(after), gold)
            }
            Form::Arc | Form::Openbookqa => {
                let is_arc = form == Form::Arc;
                let question = r.text(if is_arc { "question" } else { "question_stem" })?;
                let context = if is_arc { format!("Question: {question}\nAnswer:") } else { question.to_owned() };
                let key = r.text("answerKey")?;
                let key = if is_arc { key } else { strip_start(key) };
                let choices = row["choices"].as_object().ok_or("'choices' is no object with 'text' and 'label'")?;
                let choices = Row(choices);
                let (texts, labels) = (choices.texts("text")?, choices.texts("label")?);
                if texts.len() != labels.len() {
                    return Err(format!("'choices' has {} texts and {} labels", texts.len(), labels.len()));
                }
                let gold = labels.iter().position(|l| *l == key);
                let gold = gold.ok_or_else(|| format!("'answerKey' is '{key}', which is none of the labels"))?;
                Asked::one(context, texts.into_iter().map(str::to_owned).collect(), gold)
            }
            Form::Query => {
                let choices: Vec<String> = r.texts("choices")?.into_iter().map(str::to_owned).collect();
                let gold = r.number("gold", choices.len())?;
                Asked::one(r.text("query")?.to_owned(), choices, gold)
            }
            Form::ContextOptions => {
                let contexts: Vec<String> = r.texts("context_options")?.into_iter().map(str::to_owned).collect();
                let gold = r.number("gold", contexts.len())?;
                Asked::two_contexts(contexts, r.text("continuation")?, gold)
            }
        };
        if asked.choices.is_empty() {
            return Err("it has no choices".into());
        }
        // The paper's choices have a space before them only where the code has it in the text.
        let has_space = !is_paper || matches!(form, Form::Boolq | Form::Winogrande | Form::ContextOptions);
        let delimiter = if has_space { " " } else { "" };
        Ok(asked.question(Value::Object(doc), delimiter))
    }
}

impl Asked {
    fn one(context: String, choices: Vec<String>, gold: usize) -> Asked {
        Asked { contexts: vec![context], choices, gold, target: gold.to_string() }
    }

    /// Contexts that differ, with one continuation for all.
    fn two_contexts(contexts: Vec<String>, continuation: &str, gold: usize) -> Asked {
        let choices = vec![continuation.to_owned(); contexts.len()];
        Asked { contexts, choices, gold, target: continuation.to_owned() }
    }

    fn question(self, doc: Value, delimiter: &str) -> Question {
        let Asked { contexts, choices, gold, target } = self;
        let pair = |(i, choice): (usize, &String)| Pair {
            context: contexts[i.min(contexts.len() - 1)].clone(),
            continuation: format!("{delimiter}{choice}"),
        };
        let pairs = choices.iter().enumerate().map(pair).collect();
        let lengths = choices.iter().map(|c| c.chars().count()).collect();
        Question { doc, pairs, lengths, gold, target }
    }
}

impl<'a> Row<'a> {
    fn text(&self, field: &str) -> Result<&'a str, String> {
        let value = self.0.get(field).ok_or_else(|| format!("'{field}' is missing"))?;
        value.as_str().ok_or_else(|| format!("'{field}' is no text"))
    }

    fn texts(&self, field: &str) -> Result<Vec<&'a str>, String> {
        let texts = self.0.get(field).and_then(Value::as_array).and_then(|a| a.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| format!("'{field}' is no list of texts"))
    }

    /// A number below `end`, or the text of one.
    fn number(&self, field: &str, end: usize) -> Result<usize, String> {
        let value = self.0.get(field).ok_or_else(|| format!("'{field}' is missing"))?;
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        let number = number.and_then(|n| usize::try_from(n).ok()).filter(|n| *n < end);
        number.ok_or_else(|| format!("'{field}' is {value}, expected a number below {end}"))
    }
}

/// Texts of HellaSwag without the marks of WikiHow: ` [title]` ends a sentence, other brackets go with what is in them, and then each two
/// spaces become one, once.
fn preprocess(text: &str) -> String {
    let text = strip(text).replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        // A bracket that is not closed on its line stays.
        let line = from.split('\n').next().unwrap_or(from);
        let end = line.find(']').map_or(1, |close| close + 1);
        if end == 1 {
            out.push('[');
        }
        rest = &from[end..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(row: Value, rules: Rules) -> Result<Question, String> {
        let row = row.as_object().unwrap();
        Question::of(Form::of(row).expect("a known form"), row, rules)
    }

    #[test]
    fn brackets_of_hellaswag_go() {
        assert_eq!(preprocess(" How to [title] Do it [step]  now\n[x "), "How to. Do it  now\n[x");
        assert_eq!(preprocess("a [b [c] d] e"), "a d] e");
        assert_eq!(preprocess("a    b"), "a  b");
        assert_eq!(preprocess("[a\nb] c"), "[a\nb] c");
    }

    #[test]
    fn both_rules_ask_piqa_and_boolq_in_their_own_way() {
        let piqa = json!({"goal": "Open it", "sol1": "pull", "sol2": "push", "label": 1});
        let q = question(piqa.clone(), Rules::LmEval).unwrap();
        assert_eq!(
            (q.pairs[1].context.as_str(), q.pairs[1].continuation.as_str()),
            ("Question: Open it\nAnswer:", " push")
        );
        assert_eq!((q.gold, q.target.as_str(), &q.lengths[..]), (1, "1", &[4, 4][..]));
        let q = question(piqa, Rules::Paper).unwrap();
        assert_eq!((q.pairs[1].context.as_str(), q.pairs[1].continuation.as_str()), ("Open it", "push"));
        let boolq = json!({"passage": "P", "question": "is it", "label": 1});
        let [ours, papers] = [Rules::LmEval, Rules::Paper].map(|r| question(boolq.clone(), r).unwrap());
        assert_eq!((ours.gold, ours.pairs[1].continuation.as_str()), (1, " yes"));
        assert_eq!((papers.gold, papers.pairs[0].continuation.as_str(), papers.target.as_str()), (0, " yes", "1"));
    }

    #[test]
    fn wrong_rows_say_what_is_wrong() {
        for (row, part) in [
            (json!({"goal": 1, "sol1": "", "sol2": "", "label": 0}), "'goal' is no text"),
            (json!({"goal": "", "sol1": "", "sol2": "", "label": -1}), "'label' is -1, expected a number below 2"),
            (json!({"query": "", "choices": [], "gold": 0}), "'gold' is 0"),
            (json!({"sentence": "none", "option1": "a", "option2": "b", "answer": "1"}), "no _"),
            (json!({"sentence": "a _ b", "option1": "a", "option2": "b", "answer": ""}), "'answer' is \"\""),
            (
                json!({"question": "", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}),
                "none of the labels",
            ),
        ] {
            let error = question(row, Rules::LmEval).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(Form::of(json!({"text": ""}).as_object().unwrap()), None);
    }
}
