//! Chat templates: Jinja, rendered by minijinja with the habits of Hugging Face's transformers.

use std::fs;
use std::path::PathBuf;

use minijinja::{Environment, Value, context};

use super::jinja;
use super::turn::{Message, Role};
use crate::error::{Error, Result};
use crate::gguf::{Gguf, Value as MetadataValue};
use crate::tokenizer::REASONING;

/// Where a chat template comes from, if it is not the model's own.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// `--chat-template`: the template's text, or the name of a well-known one (`chatml`, `llama2`, `llama3`, ...)
    TextOrName(String),
    /// `--chat-template-file`
    File(PathBuf),
}

/// Variables of a template that the user gives, by name.
pub type Kwargs = serde_json::Map<String, serde_json::Value>;

/// Memory that rendering may take; and the longest text that it may make.
const MAX_MEMORY: usize = 64 << 20;
const MAX_OUTPUT: usize = 16 << 20;
/// Longest template.
const MAX_TEMPLATE: u64 = 1 << 20;

/// What to do about a template that does not work.
const ADVICE: &str = "give one with --chat-template NAME or --chat-template-file FILE, or use --no-conversation";

/// Well-known templates, for files that have none.
const KNOWN: &[(&str, &str)] = &[
    (
        "chatml",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "llama2",
        "{% set ns = namespace(system='') %}{% for m in messages %}\
         {% if m.role == 'system' %}{% set ns.system = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}\
         {% elif m.role == 'user' %}{{ bos_token ~ '[INST] ' + ns.system + m.content + ' [/INST]' }}{% set ns.system = '' %}\
         {% else %}{{ ' ' + m.content + ' ' ~ eos_token }}{% endif %}{% endfor %}",
    ),
    (
        "llama3",
        "{{ bos_token }}{% for m in messages %}\
         {{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    (
        "mistral",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content ~ eos_token }}\
         {% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}\
         {% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}",
    ),
    (
        "zephyr",
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content ~ eos_token + '\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    ),
    (
        "gemma",
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
         {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' + m.content | trim + '<end_of_turn>\n' }}\
         {% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    ),
    (
        "vicuna",
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + '\n\n' }}\
         {% elif m.role == 'user' %}{{ 'USER: ' + m.content + '\n' }}\
         {% else %}{{ 'ASSISTANT: ' + m.content ~ eos_token + '\n' }}{% endif %}{% endfor %}\
         {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    ),
];

/// A compiled chat template.
#[derive(Debug)]
pub struct Template {
    env: Environment<'static>,
    source_name: String,
    source: String,
    /// What the template knows besides the conversation and the variables of a rendering
    variables: Kwargs,
}

/// Where files have it.
const KEY: &str = "tokenizer.chat_template";

impl Template {
    /// The template that `source` names, or the model's own; `None` if there is neither. `bos` and `eos` are the texts of
    /// these tokens, if the model has them. A template that does not compile is an error of kind [`crate::error::Kind::Malformed`].
    pub fn load(
        source: Option<&Source>,
        gguf: &Gguf,
        bos: Option<String>,
        eos: Option<String>,
    ) -> Result<Option<Template>> {
        let (name, text) = match source {
            None => match gguf.metadata().str(KEY) {
                // What is no text is no template.
                Err(_) if matches!(gguf.metadata().get(KEY), Some(MetadataValue::Str(_))) => return Ok(None),
                Err(e) => return Err(e.in_file(gguf.path())),
                Ok(None) => return Ok(None),
                Ok(Some(text)) => (format!("{}: the model's chat template", gguf.path().display()), text.to_owned()),
            },
            Some(Source::TextOrName(text)) => match KNOWN.iter().find(|(name, _)| name == text) {
                Some((name, known)) => (format!("the chat template '{name}'"), (*known).to_owned()),
                None if text.contains("{{") || text.contains("{%") => ("--chat-template".to_owned(), text.clone()),
                None => {
                    let names: Vec<&str> = KNOWN.iter().map(|k| k.0).collect();
                    return Err(Error::usage(format!(
                        "--chat-template: '{text}' is neither a Jinja template nor one of: {}",
                        names.join(", ")
                    )));
                }
            },
            Some(Source::File(path)) => {
                let long = fs::metadata(path).is_ok_and(|m| m.len() > MAX_TEMPLATE);
                if long {
                    return Err(
                        Error::malformed(format!("is longer than {MAX_TEMPLATE} bytes: no template")).in_file(path)
                    );
                }
                let text = fs::read_to_string(path).map_err(|e| Error::input(format!("{e}")).in_file(path))?;
                // Editors on Windows put a byte order mark in front.
                (path.display().to_string(), text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())
            }
        };
        Template::new(name, text, bos, eos).map(Some)
    }

    /// Compiles `text`, which messages call `source_name`.
    pub fn new(source_name: String, text: String, bos: Option<String>, eos: Option<String>) -> Result<Template> {
        let mut env = jinja::environment();
        limited(|| env.add_template_owned("chat", jinja::source(&text)))
            .map_err(|e| Error::malformed(format!("{source_name} is broken ({e}): {ADVICE}")))?;
        // transformers always gives tools and documents, and special tokens only if there are any.
        let mut variables =
            Kwargs::from_iter(["tools", "documents"].map(|name| (name.to_owned(), serde_json::Value::Null)));
        let special = [("bos_token", bos), ("eos_token", eos)];
        let special = special.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into())));
        variables.extend(special);
        Ok(Template { env, source_name, source: text, variables })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// XXH3 of the template's text.
    pub fn fingerprint(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(self.source.as_bytes())
    }

    /// The text of a conversation; `add_generation_prompt` ends it where an answer begins. The template knows `kwargs` too. A text of nothing is
    /// an error.
    ///
    /// A template that refuses the system role gets the system's text in front of the first user's. One that refuses the marks of
    /// reasoning in answers gets what was thought apart from them.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool, kwargs: &Kwargs) -> Result<String> {
        let plain = |m: &Message| context! { role => m.role.name(), content => m.content.as_str() };
        let expand = |messages: Vec<Value>| self.expand(messages.into(), add_generation_prompt, kwargs);
        let result = expand(messages.iter().map(plain).collect());
        let result = result.or_else(|e| match messages {
            [system, user, rest @ ..] if system.role == Role::System && user.role == Role::User => {
                let content = format!("{}\n\n{}", system.content, user.content);
                let folded = plain(&Message { role: Role::User, content });
                expand([folded].into_iter().chain(rest.iter().map(plain)).collect())
            }
            _ => Err(e),
        });
        let text = result.or_else(|e| match messages.iter().any(|m| thought(m).is_some()) {
            true => expand(messages.iter().map(|m| thought(m).unwrap_or_else(|| plain(m))).collect()),
            false => Err(e),
        })?;
        // What is not there is empty in Jinja, and so would be the answer.
        match text.trim().is_empty() {
            true => Err(Error::malformed(format!("{} makes an empty prompt of this chat: {ADVICE}", self.source_name))),
            false => Ok(text),
        }
    }

    /// The text of messages as the template sees them.
    fn expand(&self, messages: Value, add_generation_prompt: bool, kwargs: &Kwargs) -> Result<String> {
        let template = self.env.get_template("chat").expect("the template was added");
        let mut variables = self.variables.clone();
        variables.extend(kwargs.clone());
        let context = context! {
            messages => messages,
            add_generation_prompt => add_generation_prompt,
            ..jinja::value(&variables.into())
        };
        let text = limited(|| template.render(context)).map_err(|e| {
            Error::malformed(format!(
                "{} fails ({}): {ADVICE}",
                self.source_name,
                e.detail().unwrap_or(&e.kind().to_string())
            ))
        })?;
        if text.len() > MAX_OUTPUT {
            return Err(Error::malformed(format!(
                "{} makes {} bytes of this chat: {ADVICE}",
                self.source_name,
                text.len()
            )));
        }
        Ok(text)
    }
}

/// An answer with what the model thought in a field of its own, which has two names among templates; `None` if it did not think.
fn thought(message: &Message) -> Option<Value> {
    let text = Some(message.content.trim_start()).filter(|_| message.role == Role::Assistant)?;
    let [open, close] = REASONING.iter().find(|[open, _]| text.starts_with(open))?;
    let (thought, content) = text[open.len()..].split_once(close)?;
    // gpt-oss ends what it thinks as it ends all that it says.
    let thought = thought.strip_suffix("<|end|>").unwrap_or(thought);
    Some(context! { role => message.role.name(), content, thinking => thought, reasoning_content => thought })
}

/// Compiles or renders within bounds: a few steps can double a string until all memory is gone.
fn limited<T>(f: impl FnOnce() -> T) -> T {
    let line = "pp-run: error: the chat template takes more than 64 MiB of memory: use --chat-template NAME or --no-conversation\n";
    limit::within(MAX_MEMORY, line, f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> Result<Template> {
        Template::new("t".into(), text.into(), Some("<s>".into()), Some("</s>".into()))
    }

    fn message(role: Role, content: &str) -> Message {
        Message { role, content: content.into() }
    }

    #[test]
    fn known_templates_render() {
        let turns = [
            message(Role::System, "S"),
            message(Role::User, "U"),
            message(Role::Assistant, "A"),
            message(Role::User, "V"),
        ];
        let expected = [
            (
                "chatml",
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
            ),
            ("llama2", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
            ("mistral", "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]"),
            (
                "gemma",
                "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
            ),
        ];
        for (name, text) in KNOWN {
            let rendered = template(text).unwrap().render(&turns, true, &Kwargs::new()).unwrap();
            if let Some((_, want)) = expected.iter().find(|e| e.0 == *name) {
                assert_eq!(rendered, *want, "{name}");
            }
        }
    }

    #[test]
    fn habits_of_transformers_work() {
        let t = template("{%- for m in messages if m['role'] == 'user' %}\n  {{- m['content'].strip().upper() }}{% endfor %}\n{{ strftime_now('%Y')|length }}{{ messages|tojson|length > 3 }}").unwrap();
        assert_eq!(t.render(&[message(Role::User, " a ")], true, &Kwargs::new()).unwrap(), "A4True");
    }

    #[test]
    fn broken_and_endless_templates_say_so() {
        let error = template("{% for %}").unwrap_err().to_string();
        assert!(error.contains("is broken") && error.contains("--chat-template"), "{error}");
        let refuses = template("{{ raise_exception('no!') }}").unwrap();
        let error = refuses.render(&[message(Role::User, "x")], true, &Kwargs::new()).unwrap_err().to_string();
        assert!(error.contains("no!") && error.contains("--chat-template"), "{error}");
        let endless = template("{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}").unwrap();
        assert!(endless.render(&[message(Role::User, "x")], true, &Kwargs::new()).is_err());
    }

    /// Where minijinja differs from jinja2, and no filter, test, function or method can change it: templates and snippets that show it.
    const DIFFERENT: &[(&str, &[&str])] = &[
        (
            "None has no items, instead of being an error: templates for tools go on without any",
            &[
                "llama-cpp-python/CohereForAI-c4ai-command-r-plus-tool_use",
                "llama-cpp-python/CohereForAI-c4ai-command-r7b-12-2024-tool_use",
                "llama-cpp-python/Cohere2MoE",
                "llama-cpp-python/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
                "axolotl/command_a_tool_use",
                "{% for x in none %}{{ x }}{% endfor %}",
            ],
        ),
        (
            "a generator becomes JSON as its list, instead of being an error",
            &["llama-cpp-python/llama-cpp-deepseek-r1"],
        ),
        ("safe + unsafe text is not escaped for HTML", &["llama-cpp-python/meetkai-functionary-medium-v3.1"]),
        (
            "values of all types can be compared, looked for and summed up",
            &[
                "{{ 'a' < 1 }}",
                "{{ none < 1 }}",
                "{{ 1 in 'abc' }}",
                "{{ none in 'abc' }}",
                "{{ us|sum(attribute='a') }}",
            ],
        ),
        ("Unicode's properties of digits are not all known", &["{{ '½'.isdigit() }}", "{{ '²'.isdecimal() }}"]),
        (
            "strings have no lone surrogates, and no names of characters",
            &["{{ '\\N{BULLET}' }}", "{{ '\\ud83d' is string }}"],
        ),
        ("the filter attr finds items", &["{{ d|attr('b') }}", "{{ 'a'|attr('upper')() }}"]),
        ("macros have no varargs", &["{% macro m(a, b=2"]),
        ("a macro's arguments are a list", &["{% macro m(x) %} {{ x }}"]),
    ];

    /// tests/golden/templates has made them with jinja2, as transformers uses it.
    #[test]
    fn templates_render_as_in_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/templates.json");
        let golden: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        let list = |value: &'_ serde_json::Value| value.as_array().unwrap().clone();
        let now: jiff::civil::DateTime = golden["now"].as_str().unwrap().parse().unwrap();
        let render = |text: &str, case: &serde_json::Value| {
            let kwargs = case["kwargs"].as_object().unwrap().clone();
            let special = |name: &str| (case["bare"] != true).then(|| name.to_owned());
            let mut t = Template::new("t".into(), text.into(), special("<s>"), special("</s>"))?;
            t.env.add_function("strftime_now", move |format: &str| jinja::strftime(format, now));
            t.expand(jinja::value(&case["messages"]), case["add_generation_prompt"] == true, &kwargs)
        };
        let (mut wrong, mut n) = (Vec::new(), 0);
        let mut check = |name: String, got: Result<String>, want: &serde_json::Value| {
            n += 1;
            let got = got.map_err(|e| e.to_string());
            let same = match want.as_str() {
                Some(want) if want.len() == 16 => got.as_ref().is_ok_and(|t| t == want || hash(t) == want),
                want => got.as_ref().ok().map(String::as_str) == want,
            };
            if !same && !DIFFERENT.iter().any(|(_, cases)| cases.iter().any(|c| name.starts_with(c))) {
                wrong.push(format!("{name}: {got:?}, not {want}"));
            }
        };
        for snippet in list(&golden["snippets"]) {
            let case =
                serde_json::json!({ "messages": [], "add_generation_prompt": true, "kwargs": golden["variables"] });
            let text = snippet[0].as_str().unwrap();
            check(text.to_owned(), render(text, &case), &snippet[1]);
        }
        for template in list(&golden["templates"]) {
            let (name, text) = (template[0].as_str().unwrap(), template[1].as_str().unwrap());
            for (case, want) in list(&golden["cases"]).iter().zip(list(&template[2])) {
                check(format!("{name} {}", case[0]), render(text, &case[1]), &want);
            }
        }
        assert!(wrong.is_empty(), "{} of {n} differ:\n{}", wrong.len(), wrong.join("\n"));
    }

    #[test]
    fn marks_of_reasoning_that_a_template_refuses_are_taken_apart() {
        let text = "{% for m in messages %}{{ raise_exception('no') if '<|channel|>' in m.content else m.content }}{{ m.thinking }};{% endfor %}";
        let said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.";
        let turns = [message(Role::User, "U"), message(Role::Assistant, said), message(Role::User, "V")];
        assert_eq!(template(text).unwrap().render(&turns, true, &Kwargs::new()).unwrap(), "U;Yes.Hm.;V;");
    }

    fn hash(text: &str) -> String {
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }
}
