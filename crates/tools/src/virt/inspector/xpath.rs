//! `--xpath`: an expression's value on a document, as libguestfs prints it.

use sxd_document::dom::{ChildOfElement, Element};
use sxd_xpath::nodeset::Node;
use sxd_xpath::{Context, Factory, Value};

use crate::common::Failure;
use imgcore::xml::{Xml, escape};

/// Elements nest no deeper in anything that virt-inspector wrote.
const DEPTH: usize = 64;

pub(super) fn evaluate(document: &str, query: &str) -> Result<String, Failure> {
    let bad_query = |what: String| Failure::new(format!("'{query}' is no XPath expression: {what}"));
    let bad_input =
        |what: String| Failure::new(format!("the standard input is no XML: {what}")).hint("pipe virt-inspector's output into it");
    if depth(document) > DEPTH {
        return Err(bad_input(format!("its elements nest deeper than {DEPTH}")));
    }
    let package = sxd_document::parser::parse(document).map_err(|e| bad_input(e.to_string()))?;
    let expression = Factory::new().build(query).map_err(|e| bad_query(e.to_string()))?;
    let expression = expression.ok_or_else(|| bad_query("it is empty".into()))?;
    let value = expression.evaluate(&Context::new(), package.as_document().root()).map_err(|e| bad_query(e.to_string()))?;
    Ok(match value {
        Value::Boolean(truth) => format!("{truth}\n"),
        Value::Number(number) => format!("{number}\n"),
        Value::String(text) => format!("{text}\n"),
        Value::Nodeset(nodes) => nodes.document_order().into_iter().map(node).collect(),
    })
}

/// How deep tags are nested, at most.
fn depth(document: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for tag in document.split('<').skip(1) {
        if tag.starts_with('/') {
            depth = depth.saturating_sub(1);
        } else if !tag.starts_with(['?', '!']) && !tag.split('>').next().is_some_and(|t| t.ends_with('/')) {
            depth += 1;
            deepest = deepest.max(depth);
        }
    }
    deepest
}

fn node(node: Node<'_>) -> String {
    match node {
        Node::Element(found) => {
            let mut xml = Xml::default();
            element(&mut xml, found);
            xml.text()
        }
        Node::Attribute(attribute) => format!(" {}=\"{}\"\n", attribute.name().local_part(), escape(attribute.value())),
        Node::Text(text) => format!("{}\n", escape(text.text())),
        Node::Root(root) => {
            let mut xml = Xml::default();
            root.children().into_iter().filter_map(|c| c.element()).for_each(|found| element(&mut xml, found));
            xml.document()
        }
        other => format!("{}\n", other.string_value()),
    }
}

fn element(xml: &mut Xml, found: Element<'_>) {
    let attributes = found.attributes();
    let attributes: Vec<(&str, &str)> = attributes.iter().map(|a| (a.name().local_part(), a.value())).collect();
    let name = found.name().local_part();
    let children = found.children();
    if children.iter().any(|c| matches!(c, ChildOfElement::Element(_))) || children.is_empty() {
        xml.parent(name, &attributes, |xml| children.into_iter().filter_map(|c| c.element()).for_each(|child| element(xml, child)));
    } else {
        let text: String = children.into_iter().filter_map(|c| c.text()).map(|t| t.text()).collect();
        xml.leaf(name, &attributes, &text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_printed_as_libguestfs_prints_them() {
        let document =
            "<?xml version=\"1.0\"?>\n<a>\n <b dev=\"/dev/sda\">\n  <c>x &amp; y</c>\n  <d/>\n </b>\n <b dev=\"/dev/sdb\">z</b>\n</a>\n";
        for (query, expected) in [
            ("//b[@dev='/dev/sda']", "<b dev=\"/dev/sda\">\n  <c>x &amp; y</c>\n  <d/>\n</b>\n"),
            ("string(//c)", "x & y\n"),
            ("//b[2]/text()", "z\n"),
            ("//@dev", " dev=\"/dev/sda\"\n dev=\"/dev/sdb\"\n"),
            ("count(//b)", "2\n"),
            ("boolean(//none)", "false\n"),
            ("//none", ""),
            ("//c | //d", "<c>x &amp; y</c>\n<d/>\n"),
        ] {
            assert_eq!(evaluate(document, query).unwrap(), expected, "{query}");
        }
        assert!(evaluate(document, "b[").unwrap_err().message().contains("no XPath expression"));
        assert!(evaluate("<a>", "//a").unwrap_err().message().contains("no XML"));
        assert!(evaluate(&"<a>".repeat(100_000), "//a").unwrap_err().message().contains("nest"));
    }
}
