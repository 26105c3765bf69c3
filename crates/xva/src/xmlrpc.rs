//! XML-RPC values as `ova.xml` has them: untyped text, typed text, structs and arrays.

use imgcore::{Error, Result};
use roxmltree::{Document, Node, ParsingOptions};

use crate::XVA;

/// The longest `ova.xml`, or table of checksums, in bytes.
pub(crate) const MAX_XML: u64 = 32 << 20;
/// Structs and arrays inside each other.
const MAX_DEPTH: usize = 32;
const MAX_NODES: u32 = 4 << 20;

/// One value.
pub(crate) enum Value {
    /// Text of any type, without the blanks around it; empty for nil.
    Text(String),
    /// Members in order.
    Struct(Vec<(String, Value)>),
    /// Elements in order.
    Array(Vec<Value>),
}

static NOTHING: Value = Value::Text(String::new());

impl Value {
    /// A struct's member; empty text where there is none.
    pub fn get(&self, name: &str) -> &Value {
        self.members().iter().find(|(n, _)| n == name).map_or(&NOTHING, |(_, v)| v)
    }

    /// A struct's members; none of anything else.
    pub fn members(&self) -> &[(String, Value)] {
        match self {
            Value::Struct(members) => members,
            _ => &[],
        }
    }

    /// An array's elements; none of anything else.
    pub fn elements(&self) -> &[Value] {
        match self {
            Value::Array(elements) => elements,
            _ => &[],
        }
    }

    /// Text; empty of anything else.
    pub fn text(&self) -> &str {
        match self {
            Value::Text(text) => text,
            _ => "",
        }
    }

    /// `1` and `true` in any case.
    pub fn truth(&self) -> bool {
        matches!(self.text().to_ascii_lowercase().as_str(), "1" | "true")
    }

    /// A number that is not negative.
    pub fn number(&self) -> Option<u64> {
        self.text().parse().ok()
    }
}

/// Parses XML with the limits of this module. No entity is ever expanded: a DTD is an error.
pub(crate) fn document<'a>(text: &'a str, name: &str) -> Result<Document<'a>> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|e| Error::corrupt(name, XVA, None, format!("ova.xml is not sound XML: {e}")))
}

/// The value of a bare `<value>` element.
pub(crate) fn value(node: Node<'_, '_>, name: &str) -> Result<Value> {
    parse(node, name, 0)
}

fn parse(node: Node<'_, '_>, name: &str, depth: usize) -> Result<Value> {
    let bad = |what: &str| Error::corrupt(name, XVA, None, format!("ova.xml: {what}"));
    if depth > MAX_DEPTH {
        return Err(bad("values lie too deep inside each other"));
    }
    let Some(typed) = node.first_element_child() else { return Ok(Value::Text(text(node))) };
    Ok(match typed.tag_name().name() {
        "struct" => {
            let mut members = Vec::new();
            for member in elements(typed, "member") {
                let key = elements(member, "name").next().map(text).ok_or_else(|| bad("a struct's member without a name"))?;
                let inner = elements(member, "value").next().ok_or_else(|| bad("a struct's member without a value"))?;
                members.push((key, parse(inner, name, depth + 1)?));
            }
            Value::Struct(members)
        }
        "array" => {
            let values = elements(typed, "data").flat_map(|data| elements(data, "value"));
            Value::Array(values.map(|v| parse(v, name, depth + 1)).collect::<Result<_>>()?)
        }
        "nil" => Value::Text(String::new()),
        _ => Value::Text(text(typed)),
    })
}

fn elements<'a, 'i: 'a>(node: Node<'a, 'i>, tag: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |c| c.is_element() && c.tag_name().name() == tag)
}

/// All text right inside an element, trimmed.
fn text(node: Node<'_, '_>) -> String {
    let all: String = node.children().filter(|c| c.is_text()).filter_map(|c| c.text()).collect();
    all.trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(xml: &str) -> Result<Value> {
        value(document(xml, "x")?.root_element(), "x")
    }

    #[test]
    fn typed_and_untyped_values_are_the_same() {
        let xml = "<value> <struct><member><name>a</name><value>1</value></member> <member> <name>b</name><value>
            <boolean>1</boolean> </value></member><member><name>c</name><value><array><data><value><i4>7</i4></value><value/>
            <value><nil/></value></data></array></value></member></struct></value>";
        let v = read(xml).unwrap();
        assert_eq!((v.get("a").number(), v.get("b").truth(), v.get("missing").text()), (Some(1), true, ""));
        assert_eq!(v.get("c").elements().iter().map(Value::text).collect::<Vec<_>>(), ["7", "", ""]);
    }

    #[test]
    fn hostile_xml_is_an_error() {
        let deep = "<value><array><data>".repeat(100_000) + &"</data></array></value>".repeat(100_000);
        let bomb = "<!DOCTYPE v [<!ENTITY a 'aaaaaaaaaaaaaaaaaaaaaaaa'><!ENTITY b '&a;&a;&a;'>]><value>&b;</value>";
        for xml in [&deep, bomb, "<value>", "", "<value><struct><member/></struct></value>"] {
            assert!(read(xml).is_err());
        }
    }
}
