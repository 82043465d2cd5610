//! Takes an SQL file apart into statements, by ClickHouse's own lexical rules.
//!
//! A semicolon ends a statement unless it stands in a string, a quoted name, a heredoc or a comment. `INSERT ... FORMAT` with
//! the data in the file is not supported: data has no lexical rules. Write `INSERT ... VALUES` or `INSERT ... SELECT`.

/// One statement of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The line of its first word, from 1.
    pub line: usize,
    /// Its text, without the comments around it and without the semicolon.
    pub sql: String,
}

/// Something that begins and does not end.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the {what} that begins here does not end")]
pub(super) struct Unfinished {
    /// The line it begins in, from 1.
    pub(super) line: usize,
    what: &'static str,
}

/// The statements of `text`, in order. Empty ones are left out.
pub(super) fn split(text: &str) -> Result<Vec<Statement>, Unfinished> {
    let mut statements = Vec::new();
    let mut open: Option<Open> = None;
    let mut rest = Rest { text, at: 0 };
    while let Some(token) = rest.next()? {
        match token.kind {
            Kind::Blank => {}
            Kind::Semicolon => statements.extend(open.take().map(|open| open.close(text))),
            Kind::Code => match &mut open {
                Some(open) => open.end = token.end,
                None => open = Some(Open { start: token.start, end: token.end }),
            },
        }
    }
    statements.extend(open.map(|open| open.close(text)));
    Ok(statements)
}

/// A statement whose semicolon has not come yet: the bytes from its first to its last code so far.
struct Open {
    start: usize,
    end: usize,
}

impl Open {
    fn close(self, text: &str) -> Statement {
        let sql = text.get(self.start..self.end).unwrap_or_default();
        Statement { line: line_of(text, self.start), sql: sql.to_owned() }
    }
}

/// What a stretch of text is, as far as splitting cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// White space or a comment.
    Blank,
    Semicolon,
    /// Anything else.
    Code,
}

struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

/// The text not yet read. Positions are bytes; every one that is stopped at is ASCII or the end, hence a character boundary.
struct Rest<'a> {
    text: &'a str,
    at: usize,
}

impl Rest<'_> {
    fn next(&mut self) -> Result<Option<Token>, Unfinished> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let Some(&first) = bytes.get(start) else { return Ok(None) };
        let second = bytes.get(start + 1).copied();
        let kind = match (first, second) {
            (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c, _) => self.take(1, Kind::Blank),
            (b';', _) => self.take(1, Kind::Semicolon),
            (b'-', Some(b'-')) | (b'/', Some(b'/')) | (b'#', Some(b' ' | b'!')) => self.line_comment(),
            (b'/', Some(b'*')) => self.block_comment()?,
            (b'\'', _) => self.quoted(first, "string")?,
            (b'"' | b'`', _) => self.quoted(first, "quoted name")?,
            (b'$', _) => self.heredoc()?,
            _ if is_word(first) => self.word(),
            _ => self.take(1, Kind::Code),
        };
        Ok(Some(Token { kind, start, end: self.at }))
    }

    fn take(&mut self, bytes: usize, kind: Kind) -> Kind {
        self.at += bytes;
        kind
    }

    /// Letters, digits, `_`, any part of a non-ASCII character, and `$` once inside: so that the `$` of `a$b` opens nothing.
    fn word(&mut self) -> Kind {
        let more = self.remaining().iter().take_while(|&&byte| is_word(byte) || byte == b'$').count();
        self.take(more, Kind::Code)
    }

    fn line_comment(&mut self) -> Kind {
        let length = self.remaining().iter().take_while(|&&byte| byte != b'\n').count();
        self.take(length, Kind::Blank)
    }

    /// Comments nest.
    fn block_comment(&mut self) -> Result<Kind, Unfinished> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match self.remaining() {
                [b'/', b'*', ..] => {
                    depth += 1;
                    self.at += 2;
                }
                [b'*', b'/', ..] => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(Kind::Blank);
                    }
                }
                [_, ..] => self.at += 1,
                [] => return Err(self.unfinished(start, "comment")),
            }
        }
    }

    /// A backslash escapes the next byte; a doubled quote is one quote.
    fn quoted(&mut self, quote: u8, what: &'static str) -> Result<Kind, Unfinished> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.remaining() {
                [b'\\', _, ..] => self.at += 2,
                [first, second, ..] if *first == quote && *second == quote => self.at += 2,
                [first, ..] if *first == quote => return Ok(self.take(1, Kind::Code)),
                [_, ..] => self.at += 1,
                [] => return Err(self.unfinished(start, what)),
            }
        }
    }

    /// `$tag$ ... $tag$`, the tag a word or nothing. A `$` that opens none is a mere character.
    fn heredoc(&mut self) -> Result<Kind, Unfinished> {
        let start = self.at;
        let after = self.text.get(start + 1..).unwrap_or_default();
        let tag = after.bytes().take_while(|&byte| is_word(byte)).count();
        if after.as_bytes().get(tag) != Some(&b'$') {
            return Ok(self.take(1, Kind::Code));
        }
        let fence_length = tag + 2;
        let fence = self.text.get(start..start + fence_length).unwrap_or_default();
        let body = self.text.get(start + fence_length..).unwrap_or_default();
        match body.find(fence) {
            Some(length) => Ok(self.take(2 * fence_length + length, Kind::Code)),
            None => Err(self.unfinished(start, "heredoc")),
        }
    }

    fn remaining(&self) -> &[u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn unfinished(&self, start: usize, what: &'static str) -> Unfinished {
        Unfinished { line: line_of(self.text, start), what }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn line_of(text: &str, position: usize) -> usize {
    1 + text.bytes().take(position).filter(|&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(usize, String)> {
        split(text).unwrap().into_iter().map(|statement| (statement.line, statement.sql)).collect()
    }

    fn texts(text: &str) -> Vec<String> {
        parts(text).into_iter().map(|(_, sql)| sql).collect()
    }

    #[test]
    fn statements_are_separated_and_know_their_line() {
        let text = "-- about a\nCREATE a;\n\n/* about\n b */ CREATE\n  b -- inside\n  (x);; \n";
        assert_eq!(parts(text), [(2, "CREATE a".into()), (5, "CREATE\n  b -- inside\n  (x)".into())]);
    }

    #[test]
    fn the_last_semicolon_may_be_missing_and_comments_alone_are_nothing() {
        assert_eq!(texts("SELECT 1; SELECT 2"), ["SELECT 1", "SELECT 2"]);
        assert!(texts("").is_empty());
        assert!(texts(" ;; -- x\n /* y */ ; # z\n").is_empty());
    }

    #[test]
    fn a_semicolon_in_a_string_a_name_a_heredoc_or_a_comment_ends_nothing() {
        for one in [
            "SELECT 'a;b'",
            r"SELECT 'a\';b'",
            "SELECT 'a'';b'",
            r"SELECT 'a\\', ';'",
            r#"SELECT "a;b", `c;d`, "e\";f", `g``;h`"#,
            "SELECT $$a;b$$",
            "SELECT $tag$a;$$;b$tag$",
            "SELECT 1 -- a;b\n + 1",
            "SELECT 1 # a;b\n + 1",
            "SELECT 1 #! a;b\n + 1",
            "SELECT 1 // a;b\n + 1",
            "SELECT 1 /* a; /* nested; */ b; */ + 1",
            "SELECT 'é;ü', \"ñ;\"",
        ] {
            assert_eq!(texts(&format!("{one};SELECT 2")), [one, "SELECT 2"], "{one}");
        }
    }

    #[test]
    fn what_only_looks_like_a_quote_or_a_comment_hides_no_semicolon() {
        for one in ["SELECT a$b$", "SELECT é$x$", "SELECT 1 - -1", "SELECT 4 / 2", "SELECT '#', 1 AS x", "SELECT $1"] {
            assert_eq!(texts(&format!("{one};SELECT 2; SELECT $b$$b$")), [one, "SELECT 2", "SELECT $b$$b$"], "{one}");
        }
    }

    #[test]
    fn what_does_not_end_is_refused_where_it_begins() {
        for (text, what) in [
            ("SELECT 1;\nSELECT 'a;", "string"),
            ("SELECT 1;\nSELECT 'a\\'", "string"),
            ("SELECT 1;\nSELECT `a\n\n", "quoted name"),
            ("SELECT 1;\n/* a /* b */", "comment"),
            ("SELECT 1;\nSELECT $a$ $b$", "heredoc"),
        ] {
            assert_eq!(split(text), Err(Unfinished { line: 2, what }), "{text}");
        }
    }
}
