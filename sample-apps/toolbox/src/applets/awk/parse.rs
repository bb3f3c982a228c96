//! From the text of a program to its rules and functions.

use std::collections::BTreeMap;
use std::rc::Rc;

use regex_lite::Regex;

use super::token::{Token, tokens};
use crate::applets::grep::extended;
use crate::command::Failure;

/// Expressions and statements within each other: more has no sense, and the stack is small.
const DEPTH_MAX: u32 = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Power,
    Join,
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
}

pub enum Expr {
    Number(f64),
    Text(String),
    /// By itself it is matched with `$0`.
    Regex(Rc<Regex>),
    Variable(String),
    Field(Box<Expr>),
    Element(String, Vec<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Not(Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    /// Text, pattern, and whether they shall match.
    Matches(Box<Expr>, Box<Expr>, bool),
    In(Vec<Expr>, String),
    Conditional(Box<Expr>, Box<Expr>, Box<Expr>),
    Assign(Box<Expr>, Option<Binary>, Box<Expr>),
    /// `++` and `--`: by how much, and whether the value is that after it.
    Step(Box<Expr>, f64, bool),
    /// A function of the program, or one that is built in.
    Call(String, Vec<Expr>),
    /// `(a, b)`, before `in` and after `print`.
    List(Vec<Expr>),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    File,
    Appended,
    Command,
}

pub enum Statement {
    Expr(Expr),
    Print(Vec<Expr>, Option<(Target, Expr)>),
    Printf(Vec<Expr>, Option<(Target, Expr)>),
    If(Expr, Box<Statement>, Option<Box<Statement>>),
    While(Expr, Box<Statement>),
    DoWhile(Box<Statement>, Expr),
    For(Option<Box<Statement>>, Option<Expr>, Option<Box<Statement>>, Box<Statement>),
    /// Variable, list, body.
    Each(String, String, Box<Statement>),
    Block(Vec<Statement>),
    Delete(String, Option<Vec<Expr>>),
    Next,
    Exit(Option<Expr>),
    Return(Option<Expr>),
    Break,
    Continue,
}

impl Statement {
    /// Whether it has a loop, or is a call, which may lead to one.
    pub fn may_take_long(&self) -> bool {
        match self {
            Statement::While(..)
            | Statement::DoWhile(..)
            | Statement::For(..)
            | Statement::Each(..)
            | Statement::Expr(Expr::Call(..)) => true,
            Statement::Block(all) => all.iter().any(Statement::may_take_long),
            Statement::If(_, then, otherwise) => {
                let otherwise = otherwise.as_ref();
                then.may_take_long() || otherwise.is_some_and(|it| it.may_take_long())
            }
            _ => false,
        }
    }
}

pub enum Pattern {
    Begin,
    End,
    Always,
    When(Expr),
    Range(Expr, Expr),
}

pub struct Rule {
    pub pattern: Pattern,
    /// Without one the record is printed.
    pub action: Option<Statement>,
}

pub struct Function {
    pub parameters: Vec<String>,
    pub body: Statement,
}

#[derive(Default)]
pub struct Program {
    pub rules: Vec<Rule>,
    pub functions: BTreeMap<String, Function>,
}

/// A regular expression of awk.
pub fn regex(text: &str) -> Result<Rc<Regex>, Failure> {
    let made = Regex::new(&extended(text));
    made.map(Rc::new).map_err(|error| Failure::usage(format!("bad regex '{text}': {error}")))
}

pub fn parse(text: &str) -> Result<Program, Failure> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0, no_greater: false };
    let mut program = Program::default();
    parser.skip_ends();
    while !parser.is(&Token::End) {
        parser.item(&mut program)?;
        parser.skip_ends();
    }
    Ok(program)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: u32,
    /// Within what `print` prints, where `>` leads to a file.
    no_greater: bool,
}

type Parsed<T> = Result<T, Failure>;

impl Parser {
    fn peek(&self) -> &Token {
        // The last token is the end, which nobody goes beyond.
        &self.tokens[self.at.min(self.tokens.len() - 1)]
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn is(&self, token: &Token) -> bool {
        self.peek() == token
    }

    fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Token::Sign(found) if *found == sign)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(found) if *found == word)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &str) -> Parsed<()> {
        if self.take_sign(sign) {
            return Ok(());
        }
        Err(self.unexpected(&format!("`{sign}` was expected")))
    }

    fn unexpected(&self, why: &str) -> Failure {
        Failure::usage(format!("syntax error at {}: {why}", self.peek()))
    }

    fn name(&mut self) -> Parsed<String> {
        match self.next() {
            Token::Name(name) => Ok(name),
            _ => {
                self.at -= 1;
                Err(self.unexpected("a name was expected"))
            }
        }
    }

    fn skip_lines(&mut self) {
        while self.is(&Token::Line) {
            self.at += 1;
        }
    }

    /// Ends of statements.
    fn skip_ends(&mut self) {
        while self.is(&Token::Line) || self.is_sign(";") {
            self.at += 1;
        }
    }

    /// One level deeper.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Parser) -> Parsed<T>) -> Parsed<T> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(Failure::usage(format!("more than {DEPTH_MAX} levels within each other")));
        }
        let found = inner(self);
        self.depth -= 1;
        found
    }

    fn item(&mut self, program: &mut Program) -> Parsed<()> {
        if self.take_word("function") {
            let (Token::Name(name) | Token::Call(name)) = self.next() else {
                return Err(self.unexpected("a function needs a name"));
            };
            self.expect("(")?;
            let mut parameters = Vec::new();
            while !self.take_sign(")") {
                parameters.push(self.name()?);
                self.take_sign(",");
                self.skip_lines();
            }
            self.skip_lines();
            let body = self.block()?;
            program.functions.insert(name, Function { parameters, body });
            return Ok(());
        }
        let pattern = if self.take_word("BEGIN") {
            Pattern::Begin
        } else if self.take_word("END") {
            Pattern::End
        } else if self.is_sign("{") {
            Pattern::Always
        } else {
            let first = self.expr()?;
            if self.take_sign(",") {
                self.skip_lines();
                Pattern::Range(first, self.expr()?)
            } else {
                Pattern::When(first)
            }
        };
        let action = if self.is_sign("{") { Some(self.block()?) } else { None };
        if action.is_none() && matches!(pattern, Pattern::Begin | Pattern::End) {
            return Err(self.unexpected("BEGIN and END need an action"));
        }
        program.rules.push(Rule { pattern, action });
        Ok(())
    }

    fn block(&mut self) -> Parsed<Statement> {
        self.expect("{")?;
        let mut all = Vec::new();
        loop {
            self.skip_ends();
            if self.take_sign("}") {
                return Ok(Statement::Block(all));
            }
            all.push(self.statement()?);
        }
    }

    fn statement(&mut self) -> Parsed<Statement> {
        self.deeper(Parser::statement_here)
    }

    /// The statement after a head, perhaps on the next line, perhaps none.
    fn body(&mut self) -> Parsed<Box<Statement>> {
        self.skip_lines();
        if self.take_sign(";") {
            return Ok(Box::new(Statement::Block(Vec::new())));
        }
        self.statement().map(Box::new)
    }

    fn statement_here(&mut self) -> Parsed<Statement> {
        if self.is_sign("{") {
            return self.block();
        }
        let Token::Word(word) = self.peek().clone() else {
            let simple = self.simple()?;
            return self.ended(simple);
        };
        match word {
            "if" => {
                self.at += 1;
                let condition = self.head()?;
                let then = self.body()?;
                let before = self.at;
                self.skip_ends();
                if self.take_word("else") {
                    return Ok(Statement::If(condition, then, Some(self.body()?)));
                }
                self.at = before;
                Ok(Statement::If(condition, then, None))
            }
            "while" => {
                self.at += 1;
                Ok(Statement::While(self.head()?, self.body()?))
            }
            "do" => {
                self.at += 1;
                let body = self.body()?;
                self.skip_ends();
                if !self.take_word("while") {
                    return Err(self.unexpected("`while` was expected"));
                }
                let condition = self.head()?;
                self.ended(Statement::DoWhile(body, condition))
            }
            "for" => {
                self.at += 1;
                self.for_head()
            }
            _ => {
                let simple = self.simple()?;
                self.ended(simple)
            }
        }
    }

    /// `(condition)`
    fn head(&mut self) -> Parsed<Expr> {
        self.expect("(")?;
        let condition = self.expr()?;
        self.expect(")")?;
        Ok(condition)
    }

    fn for_head(&mut self) -> Parsed<Statement> {
        self.expect("(")?;
        if let [Token::Name(name), Token::Word("in"), Token::Name(list), Token::Sign(")"), ..] =
            &self.tokens[self.at..]
        {
            let (name, list) = (name.clone(), list.clone());
            self.at += 4;
            return Ok(Statement::Each(name, list, self.body()?));
        }
        let first = if self.is_sign(";") { None } else { Some(Box::new(self.simple()?)) };
        self.expect(";")?;
        self.skip_lines();
        let condition = if self.is_sign(";") { None } else { Some(self.expr()?) };
        self.expect(";")?;
        self.skip_lines();
        let last = if self.is_sign(")") { None } else { Some(Box::new(self.simple()?)) };
        self.expect(")")?;
        Ok(Statement::For(first, condition, last, self.body()?))
    }

    /// What must follow a statement: an end, or the end of its block.
    fn ended(&mut self, statement: Statement) -> Parsed<Statement> {
        if self.is(&Token::Line) || self.is_sign(";") {
            self.at += 1;
        } else if !self.is_sign("}") && !self.is(&Token::End) {
            return Err(self.unexpected("the statement does not end here"));
        }
        Ok(statement)
    }

    fn simple(&mut self) -> Parsed<Statement> {
        let Token::Word(word) = self.peek().clone() else {
            return self.expr().map(Statement::Expr);
        };
        self.at += 1;
        let is_over =
            self.is(&Token::Line) || self.is(&Token::End) || self.is_sign(";") || self.is_sign("}");
        match word {
            "print" => {
                let (values, target) = self.printed()?;
                Ok(Statement::Print(values, target))
            }
            "printf" => {
                let (values, target) = self.printed()?;
                match values.is_empty() {
                    true => Err(self.unexpected("printf needs a format")),
                    false => Ok(Statement::Printf(values, target)),
                }
            }
            "next" => Ok(Statement::Next),
            "break" => Ok(Statement::Break),
            "continue" => Ok(Statement::Continue),
            "exit" if is_over => Ok(Statement::Exit(None)),
            "exit" => Ok(Statement::Exit(Some(self.expr()?))),
            "return" if is_over => Ok(Statement::Return(None)),
            "return" => Ok(Statement::Return(Some(self.expr()?))),
            "delete" => {
                let name = self.name()?;
                let key = if self.take_sign("[") { Some(self.list("]")?) } else { None };
                Ok(Statement::Delete(name, key))
            }
            _ => {
                self.at -= 1;
                self.expr().map(Statement::Expr)
            }
        }
    }

    /// What follows `print`: values, and where they go.
    fn printed(&mut self) -> Parsed<(Vec<Expr>, Option<(Target, Expr)>)> {
        let mut values = Vec::new();
        self.no_greater = true;
        while !(self.is(&Token::Line)
            || self.is(&Token::End)
            || [";", "}", ">", ">>", "|"].iter().any(|sign| self.is_sign(sign)))
        {
            values.push(self.expr()?);
            if !self.take_sign(",") {
                break;
            }
            self.skip_lines();
        }
        self.no_greater = false;
        if values.len() == 1
            && let Some(Expr::List(list)) = values.pop_if(|only| matches!(only, Expr::List(_)))
        {
            values = list;
        }
        let target = [(">>", Target::Appended), (">", Target::File), ("|", Target::Command)]
            .into_iter()
            .find(|(sign, _)| self.take_sign(sign));
        let target = match target {
            Some((_, target)) => Some((target, self.joined()?)),
            None => None,
        };
        Ok((values, target))
    }

    /// Expressions with commas, up to a sign.
    fn list(&mut self, end: &str) -> Parsed<Vec<Expr>> {
        let no_greater = std::mem::replace(&mut self.no_greater, false);
        let mut all = Vec::new();
        self.skip_lines();
        while !self.take_sign(end) {
            all.push(self.expr()?);
            self.skip_lines();
            if !self.is_sign(end) {
                self.expect(",")?;
                self.skip_lines();
            }
        }
        self.no_greater = no_greater;
        Ok(all)
    }

    fn expr(&mut self) -> Parsed<Expr> {
        self.deeper(Parser::assignment)
    }

    fn assignment(&mut self) -> Parsed<Expr> {
        let left = self.conditional()?;
        let operator = match self.peek() {
            Token::Sign("=") => None,
            Token::Sign("+=") => Some(Binary::Add),
            Token::Sign("-=") => Some(Binary::Subtract),
            Token::Sign("*=") => Some(Binary::Multiply),
            Token::Sign("/=") => Some(Binary::Divide),
            Token::Sign("%=") => Some(Binary::Modulo),
            Token::Sign("^=") => Some(Binary::Power),
            _ => return Ok(left),
        };
        if !matches!(left, Expr::Variable(_) | Expr::Field(_) | Expr::Element(..)) {
            return Err(self.unexpected("only variables, fields and elements can be set"));
        }
        self.at += 1;
        self.skip_lines();
        let right = self.expr()?;
        Ok(Expr::Assign(Box::new(left), operator, Box::new(right)))
    }

    fn conditional(&mut self) -> Parsed<Expr> {
        let condition = self.or()?;
        if !self.take_sign("?") {
            return Ok(condition);
        }
        self.skip_lines();
        let yes = self.expr()?;
        self.skip_lines();
        self.expect(":")?;
        self.skip_lines();
        let no = self.expr()?;
        Ok(Expr::Conditional(Box::new(condition), Box::new(yes), Box::new(no)))
    }

    fn or(&mut self) -> Parsed<Expr> {
        let mut left = self.and()?;
        while self.take_sign("||") {
            self.skip_lines();
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Parsed<Expr> {
        let mut left = self.membership()?;
        while self.take_sign("&&") {
            self.skip_lines();
            left = Expr::And(Box::new(left), Box::new(self.membership()?));
        }
        Ok(left)
    }

    fn membership(&mut self) -> Parsed<Expr> {
        let mut left = self.matching()?;
        while self.take_word("in") {
            let key = match left {
                Expr::List(keys) => keys,
                key => vec![key],
            };
            left = Expr::In(key, self.name()?);
        }
        Ok(left)
    }

    fn matching(&mut self) -> Parsed<Expr> {
        let mut left = self.comparison()?;
        loop {
            let shall = if self.take_sign("~") {
                true
            } else if self.take_sign("!~") {
                false
            } else {
                return Ok(left);
            };
            left = Expr::Matches(Box::new(left), Box::new(self.comparison()?), shall);
        }
    }

    fn comparison(&mut self) -> Parsed<Expr> {
        let left = self.joined()?;
        let operator = match self.peek() {
            Token::Sign("<") => Binary::Less,
            Token::Sign("<=") => Binary::LessOrEqual,
            Token::Sign("==") => Binary::Equal,
            Token::Sign("!=") => Binary::NotEqual,
            Token::Sign(">") if !self.no_greater => Binary::Greater,
            Token::Sign(">=") => Binary::GreaterOrEqual,
            _ => return Ok(left),
        };
        self.at += 1;
        Ok(binary(operator, left, self.joined()?))
    }

    /// Values beside each other are one text.
    fn joined(&mut self) -> Parsed<Expr> {
        let mut left = self.sum()?;
        while self.begins_value() {
            left = binary(Binary::Join, left, self.sum()?);
        }
        Ok(left)
    }

    fn begins_value(&self) -> bool {
        match self.peek() {
            Token::Number(_)
            | Token::Text(_)
            | Token::Regex(_)
            | Token::Name(_)
            | Token::Call(_) => true,
            Token::Sign(sign) => ["(", "$", "++", "--"].contains(sign),
            _ => false,
        }
    }

    fn sum(&mut self) -> Parsed<Expr> {
        let mut left = self.product()?;
        loop {
            let operator = if self.take_sign("+") {
                Binary::Add
            } else if self.take_sign("-") {
                Binary::Subtract
            } else {
                return Ok(left);
            };
            left = binary(operator, left, self.product()?);
        }
    }

    fn product(&mut self) -> Parsed<Expr> {
        let mut left = self.unary()?;
        loop {
            let operator = if self.take_sign("*") {
                Binary::Multiply
            } else if self.take_sign("/") {
                Binary::Divide
            } else if self.take_sign("%") {
                Binary::Modulo
            } else {
                return Ok(left);
            };
            left = binary(operator, left, self.unary()?);
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        self.deeper(|parser| {
            if parser.take_sign("!") {
                return Ok(Expr::Not(Box::new(parser.unary()?)));
            }
            if parser.take_sign("-") {
                return Ok(Expr::Negative(Box::new(parser.unary()?)));
            }
            if parser.take_sign("+") {
                return Ok(Expr::Positive(Box::new(parser.unary()?)));
            }
            let base = parser.stepped()?;
            if !parser.take_sign("^") {
                return Ok(base);
            }
            Ok(binary(Binary::Power, base, parser.unary()?))
        })
    }

    fn stepped(&mut self) -> Parsed<Expr> {
        for (sign, by) in [("++", 1.0), ("--", -1.0)] {
            if self.take_sign(sign) {
                return Ok(Expr::Step(Box::new(self.primary()?), by, true));
            }
        }
        let value = self.primary()?;
        if matches!(value, Expr::Variable(_) | Expr::Field(_) | Expr::Element(..)) {
            for (sign, by) in [("++", 1.0), ("--", -1.0)] {
                if self.take_sign(sign) {
                    return Ok(Expr::Step(Box::new(value), by, false));
                }
            }
        }
        Ok(value)
    }

    fn primary(&mut self) -> Parsed<Expr> {
        match self.next() {
            Token::Number(number) => Ok(Expr::Number(number)),
            Token::Text(text) => Ok(Expr::Text(text)),
            Token::Regex(text) => Ok(Expr::Regex(regex(&text)?)),
            Token::Name(name) if self.take_sign("[") => Ok(Expr::Element(name, self.list("]")?)),
            Token::Name(name) if name == "getline" => {
                Err(Failure::usage("getline is not there; records come from files and the input"))
            }
            // The only function that may stand without parentheses.
            Token::Name(name) if name == "length" => Ok(Expr::Call(name, Vec::new())),
            Token::Name(name) => Ok(Expr::Variable(name)),
            Token::Call(name) => {
                self.expect("(")?;
                Ok(Expr::Call(name, self.list(")")?))
            }
            Token::Sign("$") => {
                let field = self.deeper(|parser| match parser.is_sign("-") {
                    true => parser.unary(),
                    false => parser.incremented(),
                })?;
                Ok(Expr::Field(Box::new(field)))
            }
            Token::Sign("(") => {
                let mut list = self.list(")")?;
                match (list.len(), list.pop()) {
                    (0, _) | (_, None) => Err(self.unexpected("there is nothing in parentheses")),
                    (1, Some(inner)) => Ok(inner),
                    (_, Some(last)) => {
                        list.push(last);
                        Ok(Expr::List(list))
                    }
                }
            }
            _ => {
                self.at -= 1;
                Err(self.unexpected("a value was expected"))
            }
        }
    }

    /// What `$` takes: `$i++` is the field's, `$++i` the variable's.
    fn incremented(&mut self) -> Parsed<Expr> {
        for (sign, by) in [("++", 1.0), ("--", -1.0)] {
            if self.take_sign(sign) {
                return Ok(Expr::Step(Box::new(self.primary()?), by, true));
            }
        }
        self.primary()
    }
}

fn binary(operator: Binary, left: Expr, right: Expr) -> Expr {
    Expr::Binary(operator, Box::new(left), Box::new(right))
}
