//! As much of ClickHouse's lexer as is needed to see where a statement ends, which format it names, and where the
//! rows of an INSERT begin. It decides nothing about validity: what it cannot make sense of goes to the engine.

use std::ops::Range;

/// What the text of a request holds so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Text {
    /// More of the body is needed to say.
    Incomplete,
    /// An INSERT whose rows follow.
    Insert(Insert),
    /// Any other statement; the whole body belongs to it.
    Statement(Statement),
}

/// An INSERT with rows after it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Insert {
    /// The statement up to FORMAT or VALUES, with the SETTINGS that may follow the format moved before it.
    pub(crate) statement: String,
    /// The format it names: `Values` for VALUES, `None` if it names none.
    pub(crate) format: Option<String>,
    /// Where the rows begin.
    pub(crate) data: usize,
    /// For an INSERT SELECT: the call of `input` in the statement that stands for the rows.
    pub(crate) input: Option<Input>,
}

/// A call of the table function `input`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Input {
    /// Where it stands in the statement.
    pub(crate) call: Range<usize>,
    /// Its argument: names and types of columns; empty when it has none.
    pub(crate) structure: String,
}

/// A statement without rows after it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Statement {
    /// The first two words, in upper case.
    pub(crate) first: String,
    pub(crate) second: String,
    /// Where its last token ends; comments and semicolons after it are left out.
    pub(crate) end: usize,
    /// Where its FORMAT clause begins, and the format it names.
    pub(crate) format: Option<(usize, String)>,
    /// Something follows its semicolon.
    pub(crate) more: bool,
    /// It says INTO OUTFILE or FROM INFILE, which name files of a client.
    pub(crate) into_outfile: bool,
    pub(crate) from_infile: bool,
}

impl Statement {
    /// Whether these are its first two words.
    pub(crate) fn begins(&self, first: &str, second: &str) -> bool {
        self.first == first && self.second == second
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Word,
    Quoted,
    Text,
    Other(u8),
    Unterminated,
}

#[derive(Debug, Clone, Copy)]
struct Token {
    kind: Kind,
    start: usize,
    end: usize,
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl Lexer<'_> {
    fn byte(&self, at: usize) -> Option<u8> {
        self.text.get(at).copied()
    }

    /// The end of the line comment or block comment at `at`; `None` if there is none.
    fn comment(&self, at: usize) -> Option<Option<usize>> {
        let rest = self.text.get(at..)?;
        let line = rest.starts_with(b"--") || rest.starts_with(b"#!") || rest.starts_with(b"# ");
        if line {
            let length = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            return Some(Some(at + length));
        }
        rest.starts_with(b"/*").then(|| {
            let close = rest.get(2..)?.windows(2).position(|pair| pair == b"*/")?;
            Some(at + 2 + close + 2)
        })
    }

    /// The end of the quoted text that begins at `start`.
    fn quoted(&self, start: usize, quote: u8) -> Option<usize> {
        let mut at = start + 1;
        loop {
            match self.byte(at)? {
                b'\\' => at += 2,
                byte if byte == quote && self.byte(at + 1) == Some(quote) => at += 2,
                byte if byte == quote => return Some(at + 1),
                _ => at += 1,
            }
        }
    }

    /// The end of the heredoc (`$tag$ ... $tag$`) that begins at `start`; the outer `None` if it is none.
    fn heredoc(&self, start: usize) -> Option<Option<usize>> {
        let rest = self.text.get(start..)?;
        let tag = rest.iter().skip(1).position(|byte| !is_word(*byte))? + 1;
        if rest.get(tag) != Some(&b'$') {
            return None;
        }
        let tag = rest.get(..=tag)?;
        let body = rest.get(tag.len()..)?;
        let close = body.windows(tag.len()).position(|window| window == tag);
        Some(close.map(|close| start + tag.len() + close + tag.len()))
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

impl Iterator for Lexer<'_> {
    type Item = Token;

    fn next(&mut self) -> Option<Token> {
        loop {
            while self.byte(self.at).is_some_and(|byte| byte.is_ascii_whitespace() || byte == 0x0b || byte == 0) {
                self.at += 1;
            }
            match self.comment(self.at) {
                None => break,
                Some(Some(end)) => self.at = end,
                Some(None) => return Some(self.token(self.at, None, Kind::Unterminated)),
            }
        }
        let start = self.at;
        let first = self.byte(start)?;
        let token = match first {
            b'\'' => self.token(start, self.quoted(start, first), Kind::Text),
            b'`' | b'"' => self.token(start, self.quoted(start, first), Kind::Quoted),
            b'$' if self.heredoc(start).is_some() => self.token(start, self.heredoc(start).flatten(), Kind::Text),
            byte if is_word(byte) => {
                let rest = self.text.get(start..).unwrap_or_default();
                let length = rest.iter().position(|byte| !is_word(*byte)).unwrap_or(rest.len());
                self.token(start, Some(start + length), Kind::Word)
            }
            other => self.token(start, Some(start + 1), Kind::Other(other)),
        };
        Some(token)
    }
}

impl Lexer<'_> {
    fn token(&mut self, start: usize, end: Option<usize>, kind: Kind) -> Token {
        let kind = if end.is_some() { kind } else { Kind::Unterminated };
        self.at = end.unwrap_or(self.text.len());
        Token { kind, start, end: self.at }
    }
}

/// Reads the text of a request: `text` is what came so far, `complete` that nothing follows.
///
/// Bytes after the point where the rows of an INSERT begin are not looked at: they may be binary.
pub(crate) fn read(text: &[u8], complete: bool) -> Text {
    let mut tokens = Lexer { text, at: 0 };
    match tokens.next() {
        None if complete => Text::Statement(Statement::default()),
        None => Text::Incomplete,
        Some(first) if first.end == text.len() && !complete => Text::Incomplete,
        Some(first) if is_keyword(text, first, "INSERT") => {
            insert(text, tokens, complete).unwrap_or_else(|| statement(text, complete))
        }
        Some(_) => statement(text, complete),
    }
}

fn word(text: &[u8], token: Token) -> Option<&str> {
    let bytes = text.get(token.start..token.end)?;
    if token.kind == Kind::Word { std::str::from_utf8(bytes).ok() } else { None }
}

fn is_keyword(text: &[u8], token: Token, keyword: &str) -> bool {
    word(text, token).is_some_and(|word| word.eq_ignore_ascii_case(keyword))
}

fn slice(text: &[u8], start: usize, end: usize) -> String {
    String::from_utf8_lossy(text.get(start..end).unwrap_or_default()).into_owned()
}

fn is_prefix(text: &[u8], token: Token, keyword: &str) -> bool {
    word(text, token).and_then(|word| keyword.get(..word.len()).map(|start| start.eq_ignore_ascii_case(word)))
        == Some(true)
}

/// Reads an INSERT after its first word. `None` if it is an INSERT without rows after it (INSERT SELECT, but for one that reads
/// them with the table function `input`), or no INSERT.
fn insert(text: &[u8], tokens: Lexer<'_>, complete: bool) -> Option<Text> {
    let mut tokens = tokens.peekable();
    // A token that touches the end of what came so far may go on in what comes.
    let cut = |token: Token| !complete && (token.end == text.len() || token.kind == Kind::Unterminated);
    let at_end = |last: usize| {
        if complete { no_format(text, last) } else { Text::Incomplete }
    };

    let mut last = 0;
    let mut named = false;
    let mut depth = 0_usize;
    // Whether a query follows, and whether it reads the rows.
    let (mut selects, mut input) = (false, None);
    while let Some(token) = tokens.next() {
        if cut(token) {
            return Some(Text::Incomplete);
        }
        let keyword = |keyword| depth == 0 && is_keyword(text, token, keyword);
        match token.kind {
            Kind::Unterminated => return None,
            Kind::Other(b'(') => depth += 1,
            Kind::Other(b')') => depth = depth.checked_sub(1)?,
            Kind::Other(b';') if depth == 0 => return None,
            _ if !named => {
                // The table's own name may be any word, so it is passed over before keywords are looked for.
                let is_before_name = keyword("INTO") || keyword("TABLE") || keyword("FUNCTION");
                let is_qualified = matches!(tokens.peek(), Some(next) if next.kind == Kind::Other(b'.'));
                named = !is_before_name && !is_qualified;
            }
            _ if selects && is_keyword(text, token, "INPUT") => {
                let ahead = Lexer { text, at: token.end };
                input = input.or_else(|| call(text, token, ahead));
            }
            _ if selects && !(keyword("FORMAT") && input.is_some()) => {}
            _ if keyword("SELECT") || keyword("WITH") => selects = true,
            _ if keyword("EXPLAIN") || keyword("FROM") => return None,
            _ if keyword("VALUES") => {
                let statement = slice(text, 0, token.start);
                let format = Some("Values".into());
                return Some(Text::Insert(Insert { statement, format, data: token.end, input: None }));
            }
            _ if keyword("FORMAT") => {
                return match tokens.next() {
                    None => Some(at_end(last)),
                    Some(name) if cut(name) => Some(Text::Incomplete),
                    Some(name) => formatted(text, token, name, input, complete),
                };
            }
            _ => {}
        }
        // `INSERT INTO t (SELECT ...)`: the parenthesis holds a query, not columns.
        let begins_query = |next: &Token| is_keyword(text, *next, "SELECT") || is_keyword(text, *next, "WITH");
        let opens = !selects && depth == 1 && token.kind == Kind::Other(b'(');
        if opens && tokens.peek().is_some_and(begins_query) {
            return None;
        }
        last = token.end;
    }
    if selects && complete { None } else { Some(at_end(last)) }
}

/// Reads `('structure')` or `()` after the word `input`.
fn call(text: &[u8], name: Token, mut after: Lexer<'_>) -> Option<Input> {
    let (open, argument) = (after.next()?, after.next()?);
    match (open.kind, argument.kind) {
        (Kind::Other(b'('), Kind::Other(b')')) => {
            Some(Input { call: name.start..argument.end, structure: String::new() })
        }
        (Kind::Other(b'('), Kind::Text) => {
            let close = after.next().filter(|close| close.kind == Kind::Other(b')'))?;
            // A heredoc is a text as well, and is not read here: the engine is told to name the columns.
            let literal = slice(text, argument.start, argument.end);
            let literal = literal.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or_default();
            Some(Input { call: name.start..close.end, structure: unquoted(literal) })
        }
        _ => None,
    }
}

/// The text that the inside of a string literal stands for, as far as names and types of columns go: without line breaks
/// and the like.
fn unquoted(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    let mut characters = literal.chars();
    while let Some(character) = characters.next() {
        let escapes = character == '\\' || (character == '\'' && characters.as_str().starts_with('\''));
        out.extend(if escapes { characters.next() } else { Some(character) });
    }
    out
}

fn no_format(text: &[u8], last: usize) -> Text {
    Text::Insert(Insert { statement: slice(text, 0, last), format: None, data: text.len(), input: None })
}

/// Reads on after `FORMAT name`: SETTINGS may follow, then the rows.
fn formatted(text: &[u8], format: Token, name: Token, input: Option<Input>, complete: bool) -> Option<Text> {
    let named = word(text, name)?.to_owned();
    let mut statement = slice(text, 0, format.start);
    let mut end = name.end;
    let mut tokens = Lexer { text, at: name.end };
    match tokens.next() {
        None if !complete => {
            // The rows may begin right here, or SETTINGS may follow; a line break of our own ends the URL's part.
            let has_line_break = text.get(name.end..).unwrap_or_default().contains(&b'\n');
            if !has_line_break {
                return Some(Text::Incomplete);
            }
        }
        // The word SETTINGS may be cut at the end of what came so far.
        Some(next) if !complete && next.end == text.len() && is_prefix(text, next, "SETTINGS") => {
            return Some(Text::Incomplete);
        }
        Some(settings) if is_keyword(text, settings, "SETTINGS") => match settings_end(text, tokens, complete) {
            None => return Some(Text::Incomplete),
            Some(after) => {
                statement.push_str(&slice(text, settings.start, after));
                end = after;
            }
        },
        _ => {}
    }
    Some(Text::Insert(Insert { statement, format: Some(named), data: data_start(text, end), input }))
}

/// The end of `name = value, ...`; `None` if more text is needed to say.
fn settings_end(text: &[u8], tokens: Lexer<'_>, complete: bool) -> Option<usize> {
    let mut end = tokens.at;
    let mut value_done = false;
    for token in tokens {
        let touches_end = token.end == text.len() || token.kind == Kind::Unterminated;
        if touches_end && !complete {
            return None;
        }
        match token.kind {
            Kind::Other(b',') => value_done = false,
            // Two words without a comma between them: the rows have begun.
            _ if value_done => return Some(end),
            Kind::Other(b'=' | b'-' | b'.') => {}
            _ => value_done = text.get(..token.start).is_some_and(|before| before.trim_ascii_end().ends_with(b"=")),
        }
        end = token.end;
    }
    Some(end)
}

/// As ClickHouse: spaces, then one line break, belong to the statement.
fn data_start(text: &[u8], end: usize) -> usize {
    let mut at = end;
    while text.get(at).is_some_and(|byte| matches!(byte, b' ' | b'\t' | 0x0c)) {
        at += 1;
    }
    if text.get(at) == Some(&b'\r') {
        at += 1;
    }
    if text.get(at) == Some(&b'\n') {
        at += 1;
    }
    at
}

fn statement(text: &[u8], complete: bool) -> Text {
    if !complete {
        return Text::Incomplete;
    }
    let mut read = Statement::default();
    let mut depth = 0_isize;
    let mut ended = false;
    let mut previous: Option<Token> = None;
    let mut format_settled = false;
    for token in (Lexer { text, at: 0 }) {
        if ended && token.kind != Kind::Other(b';') {
            read.more = true;
            break;
        }
        match token.kind {
            Kind::Other(b'(' | b'[' | b'{') => depth += 1,
            Kind::Other(b')' | b']' | b'}') => depth -= 1,
            Kind::Other(b';') if depth == 0 => {
                ended = true;
                continue;
            }
            _ => {}
        }
        if read.first.is_empty() {
            read.first = word(text, token).unwrap_or("?").to_ascii_uppercase();
        } else if read.second.is_empty() {
            read.second = word(text, token).unwrap_or("?").to_ascii_uppercase();
        }
        if depth == 0
            && let Some(before) = previous
        {
            read.into_outfile |= is_keyword(text, before, "INTO") && is_keyword(text, token, "OUTFILE");
            read.from_infile |= is_keyword(text, before, "FROM") && is_keyword(text, token, "INFILE");
            if is_keyword(text, before, "FORMAT") && matches!(token.kind, Kind::Word | Kind::Quoted) {
                let name = slice(text, token.start, token.end);
                read.format = Some((before.start, name.trim_matches(['`', '"']).to_owned()));
                format_settled = false;
            } else if read.format.is_some() && !format_settled {
                // Only SETTINGS may follow; else the word was a column or a table called "format".
                format_settled = is_keyword(text, token, "SETTINGS");
                if !format_settled {
                    read.format = None;
                }
            }
        }
        read.end = token.end;
        previous = Some(token);
    }
    Text::Statement(read)
}

/// Replaces each string literal of `text` for which `with` gives another one.
pub(crate) fn replace_texts(text: &str, with: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for token in (Lexer { text: text.as_bytes(), at: 0 }) {
        let inner = text.get(token.start + 1..token.end.saturating_sub(1));
        if token.kind == Kind::Text
            && let Some(literal) = inner.and_then(&with)
        {
            out.push_str(text.get(done..token.start).unwrap_or_default());
            out.push_str(&quote(&literal));
            done = token.end;
        }
    }
    out.push_str(text.get(done..).unwrap_or_default());
    out
}

/// `text` as a string literal.
pub(crate) fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `name` as an identifier.
pub(crate) fn quote_name(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insert_of(text: &str) -> (String, Option<String>, String) {
        match read(text.as_bytes(), true) {
            Text::Insert(insert) => (insert.statement.trim().to_owned(), insert.format, text[insert.data..].to_owned()),
            other => panic!("{text}: {other:?}"),
        }
    }

    fn statement_of(text: &str) -> Statement {
        match read(text.as_bytes(), true) {
            Text::Statement(statement) => statement,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_rows_of_an_insert_begin_after_its_format() {
        let named = |format: &str| Some(format.to_owned());
        for (text, statement, format, data) in [
            ("INSERT INTO t FORMAT CSV\n1,2", "INSERT INTO t", named("CSV"), "1,2"),
            ("insert into a.b (x, y) format RowBinary \n\x01", "insert into a.b (x, y)", named("RowBinary"), "\x01"),
            ("INSERT INTO t VALUES (1, 'x'); ", "INSERT INTO t", named("Values"), " (1, 'x'); "),
            ("INSERT INTO values VALUES (1)", "INSERT INTO values", named("Values"), " (1)"),
            ("INSERT INTO format FORMAT TSV\n", "INSERT INTO format", named("TSV"), ""),
            ("INSERT INTO FUNCTION file('a') FORMAT TSV\n", "INSERT INTO FUNCTION file('a')", named("TSV"), ""),
            (
                "/* FORMAT x */ INSERT -- c\n INTO t FORMAT TSV\n\n1",
                "/* FORMAT x */ INSERT -- c\n INTO t",
                named("TSV"),
                "\n1",
            ),
            (
                "INSERT INTO t SETTINGS a = 'FORMAT x' FORMAT TSV 1",
                "INSERT INTO t SETTINGS a = 'FORMAT x'",
                named("TSV"),
                "1",
            ),
            (
                "INSERT INTO t FORMAT TSV SETTINGS a=1, b = 'x'\n1",
                "INSERT INTO t SETTINGS a=1, b = 'x'",
                named("TSV"),
                "1",
            ),
            ("INSERT INTO `a``b`(`FORMAT`) FORMAT TSV\r\n1", "INSERT INTO `a``b`(`FORMAT`)", named("TSV"), "1"),
            ("INSERT INTO t (a)", "INSERT INTO t (a)", None, ""),
        ] {
            assert_eq!(insert_of(text), (statement.to_owned(), format, data.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_cut_insert_waits_for_more() {
        let whole = b"INSERT INTO t (a) SETTINGS x = 'a b' FORMAT RowBinary\n\xff\xfe";
        for length in 0..whole.len() - 3 {
            assert_eq!(read(&whole[..length], false), Text::Incomplete, "{length}");
        }
        let Text::Insert(insert) = read(whole, false) else { panic!() };
        assert_eq!(insert.data, whole.len() - 2);
        // The part in the URL ends with a line break of its own; the rows need not have come.
        assert!(matches!(read(b"INSERT INTO t FORMAT CSV\n", false), Text::Insert(_)));
    }

    #[test]
    fn an_insert_select_is_a_statement() {
        for text in [
            "INSERT INTO t SELECT 1",
            "INSERT INTO t (a) WITH 1 AS x SELECT x",
            "INSERT INTO t (SELECT 1)",
            "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        ] {
            assert_eq!(statement_of(text).first, "INSERT", "{text}");
        }
        assert!(statement_of("INSERT INTO t FROM INFILE 'x' FORMAT CSV").from_infile);
    }

    #[test]
    fn an_insert_select_may_read_rows_with_input() {
        let text = "INSERT INTO t (a) WITH x AS (SELECT 1) SELECT a FROM (SELECT * FROM input('a Enum(\\'x\\'), b Enum(''y'')')) \
                    WHERE a IN x FORMAT CSV\n1,2";
        for cut in 0..text.find("CSV").unwrap() {
            assert_eq!(read(&text.as_bytes()[..cut], false), Text::Incomplete, "{}", &text[..cut]);
        }
        let Text::Insert(insert) = read(text.as_bytes(), true) else { panic!("no INSERT") };
        let input = insert.input.unwrap();
        assert_eq!(input.structure, "a Enum('x'), b Enum('y')");
        assert!(insert.statement[input.call].starts_with("input('a"));
        assert_eq!((insert.format.as_deref(), &text[insert.data..]), (Some("CSV"), "1,2"));
        assert!(statement_of("INSERT INTO t SELECT input FROM x FORMAT CSV\n").format.is_some());
    }

    #[test]
    fn the_format_clause_is_found_where_it_is_one() {
        let format = |text| statement_of(text).format.map(|(_, name)| name);
        assert_eq!(format("SELECT 1 FORMAT JSON"), Some("JSON".into()));
        assert_eq!(format("SELECT 1 format JSON settings max_threads = 1;"), Some("JSON".into()));
        assert_eq!(format("SELECT 'FORMAT JSON'"), None);
        assert_eq!(format("SELECT format FROM t"), None);
        assert_eq!(format("SELECT 1 -- FORMAT JSON"), None);
        assert_eq!(format("SELECT * FROM (SELECT 1 FORMAT JSON)"), None);
        assert_eq!(format("SELECT format('{}', 1) FORMAT TSV -- x"), Some("TSV".into()));
        assert_eq!(format("SELECT $a$ FORMAT x $a$ FORMAT TSV"), Some("TSV".into()));
    }

    #[test]
    fn a_statement_ends_before_comments_and_semicolons() {
        let text = "SELECT 1 ; -- done";
        let read = statement_of(text);
        assert_eq!(&text[..read.end], "SELECT 1");
        assert!(!read.more);
        assert!(statement_of("SELECT 1; SELECT 2").more);
        assert!(!statement_of("SELECT ';' ; ;").more);
        assert!(statement_of("SELECT 1 INTO OUTFILE 'x'").into_outfile);
        assert_eq!(statement_of("kill /* x */ query").second, "QUERY");
        assert_eq!(statement_of(""), Statement::default());
    }

    #[test]
    fn texts_are_replaced_where_they_are_literals() {
        let replaced = replace_texts("KILL QUERY WHERE query_id = 'a' -- 'a'", |id| (id == "a").then(|| "b'c".into()));
        assert_eq!(replaced, "KILL QUERY WHERE query_id = 'b\\'c' -- 'a'");
    }
}
