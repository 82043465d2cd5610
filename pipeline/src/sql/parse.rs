//! Text to statements, each with its tokens: they have the places that the parsed statements have lost.

use std::ops::Range;

use datafusion::sql::sqlparser::ast::{self, Expr, Ident};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Tokenizer};

use super::dialect::PipelineDialect;
use super::error::{Refusal, Result};

/// One statement of a file.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) ast: ast::Statement,
    pub(super) places: Places,
    /// `WATERMARK FOR` of a CREATE TABLE.
    pub(super) watermark: Option<WatermarkClause>,
    /// `METADATA FROM` of the columns of a CREATE TABLE.
    pub(super) metadata: Vec<MetadataClause>,
}

/// `WATERMARK FOR column [AS expr]`.
#[derive(Debug)]
pub(super) struct WatermarkClause {
    pub(super) column: Ident,
    pub(super) expr: Option<Expr>,
}

/// `column type METADATA FROM 'key'`.
#[derive(Debug)]
pub(super) struct MetadataClause {
    pub(super) column: String,
    pub(super) span: Span,
}

/// The tokens of a statement, to find places in.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Vec<TokenWithSpan>);

impl Places {
    /// The statement's first word.
    pub(super) fn start(&self) -> Span {
        self.0.first().map_or(Span::empty(), |token| token.span)
    }

    /// The first place where the word `name` stands, in any letters.
    pub(super) fn word(&self, name: &str) -> Option<Span> {
        self.words(name).next()
    }

    /// All places where the word `name` stands.
    pub(super) fn words<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Span> + 'a {
        self.0.iter().filter(move |token| is_word(token, name)).map(|token| token.span)
    }

    /// The places where the function `name` is called.
    pub(super) fn calls<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Span> + 'a {
        let pairs = self.0.iter().zip(self.0.iter().skip(1));
        pairs.filter(move |(word, next)| is_word(word, name) && next.token == Token::LParen).map(|(word, _)| word.span)
    }

    /// The place that a message means: the first of its quoted names that stands in the statement, else its start.
    pub(super) fn meant_by(&self, message: &str) -> Span {
        let quoted = message.split(['\'', '`', '"']).skip(1).step_by(2);
        // `No function matches ... 'tumble(Utf8)'`, `replies.pk`: the name is the part before or the part behind.
        let names = quoted.flat_map(|text| {
            let called = text.split('(').next().unwrap_or_default();
            [called, called.rsplit('.').next().unwrap_or_default()]
        });
        let found = names.filter(|name| !name.is_empty()).find_map(|name| self.word(name));
        found.unwrap_or_else(|| self.start())
    }
}

fn is_word(token: &TokenWithSpan, name: &str) -> bool {
    matches!(&token.token, Token::Word(word) if word.value.eq_ignore_ascii_case(name))
}

fn is_keyword(token: Option<&TokenWithSpan>, name: &str) -> bool {
    matches!(token.map(|t| &t.token), Some(Token::Word(word)) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(name))
}

/// Cuts `text` into statements and parses each.
pub(super) fn parse(text: &str) -> Result<Vec<Statement>> {
    let dialect = PipelineDialect::default();
    let tokens = Tokenizer::new(&dialect, text).tokenize_with_location().map_err(|error| {
        let span = Span::new(error.location, error.location);
        Refusal::new(span, uncapitalized(&error.message)).hint("close it, or double a quote that belongs to the text")
    })?;
    let tokens: Vec<TokenWithSpan> =
        tokens.into_iter().filter(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF)).collect();
    let statements = tokens.split(|token| token.token == Token::SemiColon).filter(|tokens| !tokens.is_empty());
    statements.map(|tokens| parse_statement(&dialect, tokens)).collect()
}

fn parse_statement(dialect: &PipelineDialect, tokens: &[TokenWithSpan]) -> Result<Statement> {
    let places = Places(tokens.to_vec());
    let mut tokens = tokens.to_vec();
    let (mut watermark, mut metadata) = (None, Vec::new());
    if is_keyword(tokens.first(), "create") {
        metadata = take_metadata(&mut tokens);
        watermark = take_watermark(dialect, &mut tokens)?;
        store_generated(&mut tokens);
    }
    let mut parser = Parser::new(dialect).with_tokens_with_locations(tokens);
    let ast = parser.parse_statement().map_err(|error| syntax(error, &places))?;
    let next = parser.peek_token();
    if next.token != Token::EOF {
        let message = format!("expected the end of the statement, found `{}`", next.token);
        return Err(Refusal::new(next.span, message).hint("end a statement with `;`"));
    }
    Ok(Statement { ast, places, watermark, metadata })
}

/// The parser tells places in words, at the end of its message; at the end of a statement it tells none.
fn syntax(error: ParserError, places: &Places) -> Refusal {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => {
            return Refusal::new(places.start(), "the statement is nested too deeply")
                .hint("split it with CREATE VIEW");
        }
    };
    let (message, span) = match text.rsplit_once(" at Line: ") {
        Some((message, place)) => (
            message,
            place.split_once(", Column: ").and_then(|(line, column)| {
                let start = Location::new(line.trim().parse().ok()?, column.trim().parse().ok()?);
                Some(
                    places.0.iter().find(|token| token.span.start == start).map_or(Span::new(start, start), |t| t.span),
                )
            }),
        ),
        None => (text.as_str(), None),
    };
    let end = places.0.last().map_or(Span::empty(), |token| Span::new(token.span.end, token.span.end));
    let message = message.replace("found: EOF", "found the end of the statement");
    Refusal::new(span.unwrap_or(end), uncapitalized(&message))
        .hint("look just before this place: a name, a comma, a quote or a parenthesis may be missing")
}

fn uncapitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

/// The parts of the list of columns, `(a INT, b TEXT)`, as ranges of tokens without the commas.
fn column_list(tokens: &[TokenWithSpan]) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, None);
    for (i, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::Word(word) if depth == 0 && matches!(word.keyword, Keyword::WITH | Keyword::AS) => break,
            Token::LParen => {
                depth += 1;
                if depth == 1 {
                    start = Some(i + 1);
                }
            }
            Token::RParen => {
                depth -= 1;
                if depth == 0 {
                    parts.extend(start.map(|start| start..i));
                    break;
                }
            }
            Token::Comma if depth == 1 => {
                parts.extend(start.map(|start| start..i));
                start = Some(i + 1);
            }
            _ => {}
        }
    }
    parts
}

/// Takes `METADATA FROM 'key'` out of each column.
fn take_metadata(tokens: &mut Vec<TokenWithSpan>) -> Vec<MetadataClause> {
    let mut clauses = Vec::new();
    for part in column_list(tokens).into_iter().rev() {
        let found = part.clone().find(|i| {
            is_keyword(tokens.get(*i), "metadata")
                && is_keyword(tokens.get(i + 1), "from")
                && matches!(tokens.get(i + 2).map(|t| &t.token), Some(Token::SingleQuotedString(_)))
        });
        let column = match tokens.get(part.start).map(|t| &t.token) {
            Some(Token::Word(word)) => word.value.clone(),
            _ => continue,
        };
        if let Some(at) = found {
            let span = tokens.get(at).map_or(Span::empty(), |token| token.span);
            tokens.drain(at..at + 3);
            clauses.push(MetadataClause { column, span });
        }
    }
    clauses
}

/// Puts the word STORED behind `GENERATED ALWAYS AS (...)` where it was left out: Postgres demands it, Arroyo does not.
fn store_generated(tokens: &mut Vec<TokenWithSpan>) {
    for part in column_list(tokens).into_iter().rev() {
        let is_generated = part.clone().any(|i| {
            is_keyword(tokens.get(i), "generated")
                && is_keyword(tokens.get(i + 1), "always")
                && is_keyword(tokens.get(i + 2), "as")
                && tokens.get(i + 3).is_some_and(|token| token.token == Token::LParen)
        });
        let last = tokens.get(part.end.saturating_sub(1));
        let Some(last) = last.filter(|last| is_generated && last.token == Token::RParen) else { continue };
        let stored = TokenWithSpan { token: Token::make_keyword("STORED"), span: last.span };
        tokens.insert(part.end, stored);
    }
}

/// Takes `WATERMARK FOR column [AS expr]` out of the list of columns.
fn take_watermark(dialect: &PipelineDialect, tokens: &mut Vec<TokenWithSpan>) -> Result<Option<WatermarkClause>> {
    let parts = column_list(tokens);
    let is_clause = |part: &Range<usize>| {
        is_keyword(tokens.get(part.start), "watermark") && is_keyword(tokens.get(part.start + 1), "for")
    };
    let mut found = parts.into_iter().filter(is_clause);
    let Some(part) = found.next() else { return Ok(None) };
    if let Some(second) = found.next() {
        let span = tokens.get(second.start).map_or(Span::empty(), |token| token.span);
        return Err(Refusal::new(span, "a table has one WATERMARK at most").hint("remove this one"));
    }
    drop(found);
    let clause = tokens.get(part.start + 2..part.end).unwrap_or_default().to_vec();
    let places = Places(clause.clone());
    let mut parser = Parser::new(dialect).with_tokens_with_locations(clause);
    let column = parser.parse_identifier().map_err(|error| syntax(error, &places))?;
    let expr = match parser.parse_keyword(Keyword::AS) {
        true => Some(parser.parse_expr().map_err(|error| syntax(error, &places))?),
        false => None,
    };
    let rest = parser.peek_token();
    if rest.token != Token::EOF {
        return Err(Refusal::new(rest.span, format!("unexpected `{}` in WATERMARK", rest.token))
            .hint("write `WATERMARK FOR column AS column - INTERVAL '5 seconds'`"));
    }
    // With the comma on one side of it.
    let comma_before = part.start.checked_sub(1).filter(|i| tokens.get(*i).is_some_and(|t| t.token == Token::Comma));
    let (from, to) = match comma_before {
        Some(comma) => (comma, part.end),
        None if tokens.get(part.end).is_some_and(|t| t.token == Token::Comma) => (part.start, part.end + 1),
        None => (part.start, part.end),
    };
    tokens.drain(from..to);
    Ok(Some(WatermarkClause { column, expr }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let error = parse(text).unwrap_err().into_error("x.sql", text);
        format!("{}:{}: {}", error.line, error.column, error.message)
    }

    #[test]
    fn arroyo_s_clauses_are_taken_out_and_kept() {
        let text = "CREATE TABLE t (
            key BYTEA METADATA FROM 'key', at TIMESTAMP NOT NULL, b INT,
            WATERMARK FOR at AS at - INTERVAL '5 seconds'
        ) WITH (connector = 'kafka', type = 'source')";
        let statement = parse(text).unwrap().remove(0);
        let watermark = statement.watermark.unwrap();
        assert_eq!(watermark.column.value, "at");
        assert_eq!(watermark.expr.unwrap().to_string(), "at - INTERVAL '5 seconds'");
        assert_eq!(statement.metadata[0].column, "key");
        let rest = statement.ast.to_string();
        assert!(rest.contains("key BYTEA, at TIMESTAMP NOT NULL, b INT)"), "{rest}");
    }

    #[test]
    fn statements_may_hold_semicolons_in_text_and_comments() {
        let all = parse("-- one; two\nSELECT ';' FROM t; /* ; */ SELECT b FROM t;;").unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1].places.start().start, Location::new(2, 28));
    }

    #[test]
    fn syntax_errors_have_a_place() {
        assert_eq!(refused("SELECT a\nFROM t WHERE )"), "2:14: expected: an expression, found: )");
        assert_eq!(refused("SELECT a FROM"), "1:14: expected: identifier, found the end of the statement");
        assert_eq!(refused("SELECT 'a"), "1:8: unterminated string literal");
        assert_eq!(refused("SELECT a FROM t SELECT b"), "1:17: expected the end of the statement, found `SELECT`");
    }

    #[test]
    fn operators_of_json_bind_more_tightly_than_comparisons() {
        let statement = parse("SELECT window.end FROM t WHERE a ->> 'b' = 'c' AND a ? 'd'").unwrap().remove(0);
        assert!(statement.ast.to_string().contains("a ->> 'b' = 'c'"));
        let ast::Statement::Query(query) = statement.ast else { panic!("a query") };
        let Some(Expr::BinaryOp { left, .. }) = &query.body.as_select().unwrap().selection else { panic!("AND") };
        let Expr::BinaryOp { op, .. } = left.as_ref() else { panic!("a comparison") };
        assert_eq!(*op, ast::BinaryOperator::Eq);
    }

    #[test]
    fn types_of_the_dialect_are_parsed() {
        let text = "CREATE TABLE t (a BIGINT UNSIGNED, b TEXT[], c STRUCT<d INT, e TEXT>, f JSON,
            g TEXT GENERATED ALWAYS AS (b[1]) STORED, PRIMARY KEY (a)) WITH (connector = 'x')";
        parse(text).unwrap();
        parse("SET updating_ttl = INTERVAL '1 hour'").unwrap();
    }
}
