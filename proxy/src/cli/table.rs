//! Tables as istioctl prints them: columns as wide as their widest cell and five spaces.

use std::io::{self, Write};

const PADDING: usize = 5;

/// Writes a head and rows. A row shorter than the head leaves its last columns empty.
pub fn write(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0) + PADDING
    };
    let widths: Vec<_> = (0..head.len()).map(width).collect();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: String = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", padded.trim_end())
    };
    line(&mut head.iter().copied())?;
    rows.iter().try_for_each(|row| line(&mut row.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_five_spaces_apart() {
        let rows = [vec!["kubernetes://client-credential".to_owned(), "ACTIVE".to_owned()], vec!["é".to_owned()]];
        let mut out = Vec::new();
        write(&mut out, &["NAME", "STATUS"], &rows).unwrap();
        let expected = "\
NAME                               STATUS
kubernetes://client-credential     ACTIVE
é
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
