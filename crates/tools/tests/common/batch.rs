//! `v2v batch` while it runs, and what it leaves.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use super::small::tool;

/// A program's exit code, and what it said.
pub fn code(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A batch that runs, and the events that it has printed so far.
pub struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    pub events: Vec<Value>,
}

impl Running {
    /// Starts `v2v batch` with these arguments, and `--json`.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Running { child, lines, events: Vec::new() }
    }

    /// Reads events up to one that is wanted; `false` at their end.
    pub fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> bool {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
            line.clear();
            self.events.push(event);
            if wanted(&self.events[self.events.len() - 1]) {
                return true;
            }
        }
        false
    }

    pub fn signal(&self, signal: &str) {
        tool("kill", &[signal, &self.child.id().to_string()]);
    }

    /// The processes that convert a guest now.
    pub fn conversions(&self) -> Vec<String> {
        let children = tool("pgrep", &["-P", &self.child.id().to_string()]);
        children.split_whitespace().map(str::to_owned).collect()
    }

    pub fn end(mut self) -> (i32, String, Vec<Value>) {
        self.until(|_| false);
        let status = self.child.wait().unwrap();
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code().unwrap_or(-1), said, self.events)
    }
}

/// How each attempt at a guest ended.
pub fn outcomes(dir: &Path, guest: &str) -> Vec<String> {
    let state: Value = serde_json::from_slice(&fs::read(dir.join(format!("plan.state/{guest}/state.json"))).unwrap()).unwrap();
    state["attempts"].as_array().unwrap().iter().map(|a| a["outcome"].as_str().unwrap_or("none").to_owned()).collect()
}

/// Checks the page by parsers that know HTML: that it is well-formed, has nothing from elsewhere, and shows these texts.
pub fn page(dir: &Path, wanted: &[&str]) -> String {
    let file = dir.join("plan.html");
    tool("xmllint", &["--noout", file.to_str().unwrap()]);
    let script = "\
import sys, html.parser
class Page(html.parser.HTMLParser):
    text = ''; open = []
    def handle_starttag(self, tag, attributes):
        assert tag not in ('script', 'img', 'link', 'iframe', 'object', 'form', 'base'), tag
        for name, value in attributes:
            assert not name.startswith('on') and (name != 'href' or value.startswith('#')), (name, value)
        self.open.append(tag)
    def handle_startendtag(self, tag, attributes): pass
    def handle_endtag(self, tag): assert self.open.pop() == tag, tag
    def handle_data(self, data): self.text += data
page = Page(); page.feed(open(sys.argv[1], encoding='utf-8').read()); page.close()
assert not page.open, page.open
print(page.text)";
    let text = tool("python3", &["-c", script, file.to_str().unwrap()]);
    for wanted in wanted {
        assert!(text.contains(wanted), "{wanted:?} is not in the report:\n{text}");
    }
    text
}
