//! The picture as an SVG: a row of squares for each stretch of the image, and a legend with the sizes.
//!
//! Layers are told apart by colours that colour-blind people can tell apart, and by numbers; compressed data is striped, zeroes
//! are dotted. Pointing at a place tells its range and what it is.

use std::fmt::{Error, Write};

use imgcore::size;
use imgcore::xml::escape;

use super::picture::{Kind, Picture, Shares, percent};

/// Cells in a row, and the most rows.
pub(super) const COLUMNS: usize = 64;
pub(super) const ROWS: usize = 48;

/// Fill and text colours of the layers, after Okabe and Ito.
const COLOURS: [(&str, &str); 6] = [
    ("#0072b2", "#ffffff"),
    ("#e69f00", "#3b2a00"),
    ("#009e73", "#ffffff"),
    ("#cc79a7", "#3d0f28"),
    ("#56b4e9", "#06324a"),
    ("#d55e00", "#ffffff"),
];
const INK: &str = "#1f2933";
const PALE_INK: &str = "#66727f";
const NOTHING: &str = "#eef1f4";
const ZERO: &str = "#dfe5ea";
const DOT: &str = "#a3afba";

const CELL: f64 = 14.0;
const LEFT: f64 = 96.0;
const TOP: f64 = 112.0;
const MARGIN: f64 = 32.0;
const LEGEND_ROW: f64 = 26.0;
/// The least height of what is stored in a cell, so that it is seen.
const SEEN: f64 = 2.5;
/// Columns of numbers in the legend: their right edges.
const NUMBERS: [f64; 4] = [620.0, 750.0, 880.0, 992.0];

/// Draws `picture` of the image called `title`.
pub(super) fn draw(picture: &Picture, title: &str) -> Result<String, Error> {
    let mut out = String::new();
    let rows = picture.cells.len().div_ceil(picture.columns);
    let (grid_width, grid_height) = (picture.columns as f64 * CELL, rows as f64 * CELL);
    let (width, legend) = (LEFT + grid_width + MARGIN, TOP + grid_height + 48.0);
    let height = legend + LEGEND_ROW * (picture.layers.len() + 1) as f64 + MARGIN;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         font-family=\"system-ui, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif\">"
    )?;
    writeln!(out, "<title>Where the data of {} lies</title>", escape(title))?;
    patterns(&mut out, picture)?;
    writeln!(out, "<rect width=\"100%\" height=\"100%\" rx=\"10\" fill=\"#ffffff\"/>")?;
    text(&mut out, MARGIN, 44.0, &format!("font-size=\"20\" font-weight=\"600\" fill=\"{INK}\""), &shortened(title, 80))?;
    text(&mut out, MARGIN, 66.0, &format!("font-size=\"13\" fill=\"{PALE_INK}\""), &picture.summary())?;
    bar(&mut out, picture, width)?;
    for row in 0..rows {
        draw_row(&mut out, picture, row)?;
    }
    // One net over all makes cells of long rectangles.
    let mut net = String::new();
    for column in 0..=picture.columns {
        write!(net, "M{} {TOP}v{grid_height}", LEFT + column as f64 * CELL)?;
    }
    for row in 0..=rows {
        write!(net, "M{LEFT} {}h{grid_width}", TOP + row as f64 * CELL)?;
    }
    writeln!(out, "<path d=\"{net}\" stroke=\"#ffffff\" stroke-width=\"1.5\" pointer-events=\"none\"/>")?;
    draw_legend(&mut out, picture, legend)?;
    out += "</svg>\n";
    Ok(out)
}

fn colour(layer: usize) -> (&'static str, &'static str) {
    COLOURS[layer % COLOURS.len()]
}

fn fill(kind: Kind) -> String {
    match kind {
        Kind::Data(layer) => colour(layer).0.into(),
        Kind::Compressed(layer) => format!("url(#compressed{})", layer % COLOURS.len()),
        Kind::Zero(_) => "url(#zero)".into(),
        Kind::Unallocated => NOTHING.into(),
    }
}

fn patterns(out: &mut String, picture: &Picture) -> Result<(), Error> {
    out.push_str("<defs>\n");
    for layer in 0..picture.layers.len().min(COLOURS.len()) {
        writeln!(
            out,
            "<pattern id=\"compressed{layer}\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
             <rect width=\"5\" height=\"5\" fill=\"{}\"/><rect width=\"2\" height=\"5\" fill=\"#ffffff\" fill-opacity=\"0.55\"/></pattern>",
            colour(layer).0
        )?;
    }
    // Its dots lie in the middle of the cells.
    writeln!(
        out,
        "<pattern id=\"zero\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{CELL}\" height=\"{CELL}\" patternUnits=\"userSpaceOnUse\">\
         <rect width=\"{CELL}\" height=\"{CELL}\" fill=\"{ZERO}\"/><circle cx=\"{0}\" cy=\"{0}\" r=\"1.2\" fill=\"{DOT}\"/></pattern>",
        CELL / 2.0
    )?;
    out.push_str("</defs>\n");
    Ok(())
}

/// All of the image as one bar.
fn bar(out: &mut String, picture: &Picture, width: f64) -> Result<(), Error> {
    let width = width - 2.0 * MARGIN;
    writeln!(out, "<clipPath id=\"bar\"><rect x=\"{MARGIN}\" y=\"80\" width=\"{width}\" height=\"10\" rx=\"5\"/></clipPath>")?;
    writeln!(out, "<g clip-path=\"url(#bar)\">")?;
    let mut x = MARGIN;
    for (kind, length) in stretched(&picture.all, width) {
        write!(out, "<rect x=\"{x:.2}\" y=\"80\" width=\"{length:.2}\" height=\"10\" fill=\"{}\">", fill(kind))?;
        let bytes = picture.all.of(kind);
        let words = format!("{}: {} ({})", picture.words(kind), size::human(bytes), percent(bytes, picture.all.total()));
        writeln!(out, "<title>{}</title></rect>", escape(&words))?;
        x += length;
    }
    writeln!(out, "</g>")
}

/// The lengths of shares that make up `length` together, where what is stored is long enough to be seen.
fn stretched(shares: &Shares, length: f64) -> Vec<(Kind, f64)> {
    let total = shares.total().max(1) as f64;
    let wanted = |(kind, bytes): &(Kind, u64)| {
        let exact = *bytes as f64 / total * length;
        (*kind, if kind.is_stored() { exact.max(SEEN) } else { exact })
    };
    let parts: Vec<_> = shares.0.iter().map(wanted).collect();
    let sum: f64 = parts.iter().map(|(_, length)| length).sum();
    parts.into_iter().map(|(kind, part)| (kind, part / sum * length)).collect()
}

fn draw_row(out: &mut String, picture: &Picture, row: usize) -> Result<(), Error> {
    let y = TOP + row as f64 * CELL;
    let first = row * picture.columns;
    let last = picture.cells.len().min(first + picture.columns);
    let label = size::human(picture.bytes(first..last).start);
    let style = format!("font-size=\"10\" text-anchor=\"end\" fill=\"{PALE_INK}\"");
    text(out, LEFT - 10.0, y + 11.0, &style, &label)?;
    let mut at = first;
    while at < last {
        let cell = &picture.cells[at];
        let x = LEFT + (at - first) as f64 * CELL;
        if let [(kind, _)] = cell.0[..] {
            let same = picture.cells[at..last].iter().take_while(|c| matches!(c.0[..], [(k, _)] if k == kind)).count();
            draw_run(out, picture, kind, at..at + same, x, y)?;
            at += same;
        } else {
            draw_mixed(out, picture, at, x, y)?;
            at += 1;
        }
    }
    Ok(())
}

/// Cells that are wholly of one kind.
fn draw_run(out: &mut String, picture: &Picture, kind: Kind, cells: std::ops::Range<usize>, x: f64, y: f64) -> Result<(), Error> {
    let count = cells.len();
    let bytes = picture.bytes(cells);
    let words = format!("{:#x} to {:#x} ({}): {}", bytes.start, bytes.end, size::human(bytes.end - bytes.start), picture.words(kind));
    write!(out, "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{CELL}\" fill=\"{}\">", count as f64 * CELL, fill(kind))?;
    writeln!(out, "<title>{}</title></rect>", escape(&words))?;
    if let Kind::Data(layer) = kind
        && picture.layers.len() > 1
        && count >= 3
    {
        number(out, x, y, layer)?;
    }
    Ok(())
}

/// A cell of several kinds: slices of it, what is stored at the bottom.
fn draw_mixed(out: &mut String, picture: &Picture, at: usize, x: f64, y: f64) -> Result<(), Error> {
    let cell = &picture.cells[at];
    let bytes = picture.bytes(at..at + 1);
    let parts = cell.0.iter().map(|(kind, bytes)| format!("{} {}", size::human(*bytes), picture.words(*kind)));
    let words = format!("{:#x} to {:#x}: {}", bytes.start, bytes.end, parts.collect::<Vec<_>>().join("; "));
    write!(out, "<g><title>{}</title>", escape(&words))?;
    let mut bottom = y + CELL;
    for (kind, height) in stretched(cell, CELL) {
        bottom -= height;
        write!(out, "<rect x=\"{x}\" y=\"{bottom:.2}\" width=\"{CELL}\" height=\"{height:.2}\" fill=\"{}\"/>", fill(kind))?;
    }
    writeln!(out, "</g>")
}

/// A layer's number on its colour.
fn number(out: &mut String, x: f64, y: f64, layer: usize) -> Result<(), Error> {
    let style = format!("font-size=\"9\" font-weight=\"600\" text-anchor=\"middle\" fill=\"{}\" pointer-events=\"none\"", colour(layer).1);
    text(out, x + CELL / 2.0, y + CELL - 3.7, &style, &layer.to_string())
}

fn draw_legend(out: &mut String, picture: &Picture, top: f64) -> Result<(), Error> {
    let style = format!("font-size=\"11\" fill=\"{PALE_INK}\"");
    text(out, LEFT + 28.0, top, &style, "Layer")?;
    for (x, words) in NUMBERS.into_iter().zip(["data", "compressed", "zero", "of all"]) {
        text(out, x, top, &format!("{style} text-anchor=\"end\""), words)?;
    }
    let whole = picture.all.total();
    for (layer, of) in picture.layers.iter().enumerate() {
        let y = top + LEGEND_ROW * (layer + 1) as f64;
        swatch(out, y, Kind::Data(layer))?;
        number(out, LEFT, y - 11.5, layer)?;
        text(out, LEFT + 28.0, y, &format!("font-size=\"13\" fill=\"{INK}\""), &format!("{} ({})", shortened(&of.file, 48), of.format))?;
        let kinds = [Kind::Data(layer), Kind::Compressed(layer), Kind::Zero(layer)];
        for (kind, x) in kinds.into_iter().zip(NUMBERS) {
            amount(out, x, y, picture.all.of(kind), kind)?;
        }
        let sum = kinds.iter().map(|kind| picture.all.of(*kind)).sum();
        text(out, NUMBERS[3], y, &format!("font-size=\"13\" text-anchor=\"end\" fill=\"{INK}\""), &percent(sum, whole))?;
    }
    let y = top + LEGEND_ROW * (picture.layers.len() + 1) as f64;
    let nothing = picture.all.of(Kind::Unallocated);
    swatch(out, y, Kind::Unallocated)?;
    text(out, LEFT + 28.0, y, &format!("font-size=\"13\" fill=\"{INK}\""), "unallocated in all layers: reads as zero")?;
    amount(out, NUMBERS[2], y, nothing, Kind::Unallocated)?;
    text(out, NUMBERS[3], y, &format!("font-size=\"13\" text-anchor=\"end\" fill=\"{INK}\""), &percent(nothing, whole))
}

/// An amount with a little square of its kind before it; nothing where there is none.
fn amount(out: &mut String, x: f64, y: f64, bytes: u64, kind: Kind) -> Result<(), Error> {
    if bytes == 0 {
        return text(out, x, y, "font-size=\"13\" text-anchor=\"end\" fill=\"#b3bcc5\"", "–");
    }
    let (left, top) = (x - 90.0, y - 11.5);
    if let Kind::Compressed(_) = kind {
        writeln!(out, "<rect x=\"{left}\" y=\"{top}\" width=\"{CELL}\" height=\"{CELL}\" rx=\"3\" fill=\"{}\"/>", fill(kind))?;
    }
    if let Kind::Zero(_) = kind {
        // The pattern's own dots would lie anywhere.
        write!(out, "<rect x=\"{left}\" y=\"{top}\" width=\"{CELL}\" height=\"{CELL}\" rx=\"3\" fill=\"{ZERO}\"/>")?;
        writeln!(out, "<circle cx=\"{}\" cy=\"{}\" r=\"1.2\" fill=\"{DOT}\"/>", left + CELL / 2.0, top + CELL / 2.0)?;
    }
    text(out, x, y, &format!("font-size=\"13\" text-anchor=\"end\" fill=\"{INK}\""), &size::human(bytes))
}

fn swatch(out: &mut String, y: f64, kind: Kind) -> Result<(), Error> {
    let edge = if kind == Kind::Unallocated { " stroke=\"#c3cbd3\"" } else { "" };
    writeln!(out, "<rect x=\"{LEFT}\" y=\"{}\" width=\"{CELL}\" height=\"{CELL}\" rx=\"3\" fill=\"{}\"{edge}/>", y - 11.5, fill(kind))
}

fn text(out: &mut String, x: f64, y: f64, style: &str, words: &str) -> Result<(), Error> {
    writeln!(out, "<text x=\"{x}\" y=\"{y}\" {style}>{}</text>", escape(words))
}

/// The end of a text that is too long for its place.
fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most { text.into() } else { std::iter::once('…').chain(text.chars().skip(count - most + 1)).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::image;
    use super::*;

    #[test]
    fn images_of_any_size_become_xml() {
        for size in [0, 512, 1 << 20, 64 << 20, 8 << 40] {
            let picture = Picture::of(&*image(size), 0..size, COLUMNS, ROWS).unwrap();
            let svg = draw(&picture, "disk<&>\u{1}.qcow2").unwrap();
            let document = roxmltree::Document::parse(&svg).unwrap();
            let texts: Vec<_> = document.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect();
            assert!(texts.contains(&"disk<&>\u{fffd}.qcow2"), "{texts:?}");
            if size > 3 << 20 {
                assert!(texts.contains(&"64 KiB"), "{texts:?}");
                assert!(svg.contains("0x100000 to 0x110000 (64 KiB): data in disk") || size > 64 << 20);
            }
        }
    }

    #[test]
    fn a_little_is_seen_and_all_fits() {
        let shares = Shares(vec![(Kind::Data(0), 1), (Kind::Unallocated, 9999)]);
        let parts = stretched(&shares, CELL);
        assert!(parts[0].1 > 2.0, "{parts:?}");
        assert!((parts.iter().map(|p| p.1).sum::<f64>() - CELL).abs() < 0.001);
    }
}
