//! The picture for a terminal: a character for each cell, as many as fit into its width, and a legend with the sizes.

use std::io::{self, IsTerminal, Write};

use imgcore::size;

use super::picture::{Kind, Picture, percent};

/// The most rows.
pub(super) const ROWS: usize = 16;
/// Place for the offset before a row.
const LABEL: usize = 10;
/// The nearest that a terminal with 256 colours has to the colours of the SVG.
const COLOURS: [u8; 6] = [32, 214, 36, 175, 74, 166];
const PALE: u8 = 245;
/// Letters for layers whose data is compressed; digits for data as it is.
const LETTERS: &[u8] = b"abcdefghij";

/// What a terminal can show.
#[derive(Clone, Copy)]
pub(super) struct Abilities {
    pub(super) width: usize,
    pub(super) colour: bool,
    pub(super) unicode: bool,
}

impl Abilities {
    /// Those of the standard output.
    pub(super) fn found() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let asked = rustix::termios::tcgetwinsize(&out).ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| set(name)).unwrap_or_default().to_uppercase();
        Abilities {
            width: asked.or_else(|| set("COLUMNS")?.parse().ok()).unwrap_or(80),
            colour: is_terminal && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb"),
            unicode: locale.contains("UTF-8") || locale.contains("UTF8"),
        }
    }

    /// Cells in a row: a power of two, so that rows begin at round offsets.
    pub(super) fn columns(&self) -> usize {
        let room = self.width.saturating_sub(LABEL + 1).clamp(8, 256);
        1 << room.ilog2()
    }

    fn painted(&self, text: &str, colour: u8) -> String {
        if self.colour { format!("\x1b[38;5;{colour}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Draws `picture` of the image called `title`.
pub(super) fn draw(picture: &Picture, title: &str, abilities: Abilities, out: &mut impl Write) -> io::Result<()> {
    let signs = Signs { abilities, shades: abilities.unicode && (abilities.colour || picture.layers.len() == 1) };
    writeln!(out, "{title}: {}", picture.summary())?;
    for (row, cells) in picture.cells.chunks(picture.columns).enumerate() {
        let offset = size::human(picture.bytes(row * picture.columns..picture.cells.len()).start);
        write!(out, "{offset:>LABEL$} ")?;
        for same in cells.chunk_by(|a, b| signs.of(a.main(), a.stored(), a.total()) == signs.of(b.main(), b.stored(), b.total())) {
            if let Some(cell) = same.first() {
                let (sign, colour) = signs.of(cell.main(), cell.stored(), cell.total());
                write!(out, "{}", abilities.painted(&sign.to_string().repeat(same.len()), colour))?;
            }
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    let whole = picture.all.total();
    for (layer, of) in picture.layers.iter().enumerate() {
        writeln!(out, "{layer}: {} ({})", of.file, of.format)?;
        for kind in [Kind::Data(layer), Kind::Compressed(layer), Kind::Zero(layer)] {
            signs.legend(kind, picture.all.of(kind), whole, out)?;
        }
    }
    writeln!(out, "in no layer")?;
    signs.legend(Kind::Unallocated, picture.all.of(Kind::Unallocated), whole, out)
}

/// How kinds are shown.
struct Signs {
    abilities: Abilities,
    /// Whether blocks show how full a cell is; else digits and letters show its layer.
    shades: bool,
}

impl Signs {
    fn of(&self, kind: Kind, stored: u64, total: u64) -> (char, u8) {
        let unicode = self.abilities.unicode;
        let sign = match kind {
            Kind::Compressed(_) if self.shades => '▚',
            Kind::Data(_) if self.shades => match stored as f64 / total.max(1) as f64 {
                part if part > 0.75 => '█',
                part if part > 0.5 => '▓',
                part if part > 0.25 => '▒',
                _ => '░',
            },
            Kind::Data(layer) => char::from(b"0123456789"[layer % 10]),
            Kind::Compressed(layer) => char::from(LETTERS[layer % 10]),
            Kind::Zero(_) => '-',
            Kind::Unallocated if unicode => '·',
            Kind::Unallocated => '.',
        };
        let colour = match kind {
            Kind::Data(layer) | Kind::Compressed(layer) => COLOURS[layer % COLOURS.len()],
            Kind::Zero(_) | Kind::Unallocated => PALE,
        };
        (sign, colour)
    }

    fn legend(&self, kind: Kind, bytes: u64, whole: u64, out: &mut impl Write) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let words = match kind {
            Kind::Data(_) if self.shades => "data, the darker the more",
            Kind::Data(_) => "data",
            Kind::Compressed(_) => "compressed",
            Kind::Zero(_) => "zero",
            Kind::Unallocated => "unallocated, reads as zero",
        };
        let (sign, colour) = self.of(kind, 1, 1);
        writeln!(
            out,
            "  {} {words:<26} {:>10}  {:>8}",
            self.abilities.painted(&sign.to_string(), colour),
            size::human(bytes),
            percent(bytes, whole)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::picture::tests::image;
    use super::*;

    fn drawn(size: u64, abilities: Abilities) -> String {
        let picture = Picture::of(&*image(size), 0..size, abilities.columns(), 4).unwrap();
        let mut out = Vec::new();
        draw(&picture, "disk", abilities, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_plain_terminal_gets_plain_characters() {
        let plain = Abilities { width: 80, colour: false, unicode: false };
        let expected = "\
disk: 4 MiB, 64 KiB stored (1.6 %); one cell is 16 KiB
       0 B ................................................................
     1 MiB 0000............................................................
     2 MiB ................................................................
     3 MiB ................................................................

0: disk<&>.qcow2 (qcow2)
  0 data                           64 KiB     1.6 %
in no layer
  . unallocated, reads as zero   3.94 MiB      98 %
";
        assert_eq!(drawn(4 << 20, plain), expected);
    }

    #[test]
    fn the_width_is_kept_and_shades_show_how_much() {
        for width in [1, 20, 50, 80, 133, 1000] {
            let text = drawn(64 << 30, Abilities { width, colour: false, unicode: true });
            let grid = text.lines().skip(1).take(4);
            assert!(grid.clone().all(|line| line.chars().count() <= width.max(LABEL + 9)), "{text}");
            assert!(grid.clone().next().is_some_and(|line| line.contains("░·")), "{text}");
        }
        let coloured = drawn(4 << 20, Abilities { width: 80, colour: true, unicode: true });
        assert!(coloured.contains("\x1b[38;5;32m████\x1b[0m"), "{coloured}");
    }
}
