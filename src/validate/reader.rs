//! Takes a JSON object apart, field by field, and collects every violation.
//!
//! A rule turns one JSON value into a typed one or says in a sentence why not. The reader
//! knows which fields were given, so that the same description of a noun serves creation
//! (required fields), replacement and partial change.

use serde_json::{Map, Value};

use super::{Strictness, Violations};

/// What the fields are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Write {
    /// A new row: required fields must be there, read-only ones must not.
    Create,
    /// All fields anew: as creation, but read-only fields may be there and are ignored, so
    /// that what GET answered can be edited and put back.
    Replace,
    /// Only the given fields change; `null` empties one.
    Change,
}

/// A JSON object on its way to become a row.
#[derive(Debug)]
pub struct Reader {
    map: Map<String, Value>,
    /// Put before field names of nested objects, as in `network_config.`.
    prefix: String,
    write: Write,
    strictness: Strictness,
    violations: Violations,
}

/// A rule of one value: the typed value, or what is wrong in a sentence without subject
/// (`must be ..`).
pub(super) type Rule<T> = fn(&Value, Strictness) -> Result<T, String>;

impl Reader {
    /// Over a whole body.
    #[must_use]
    pub fn new(map: Map<String, Value>, write: Write, strictness: Strictness) -> Self {
        Self {
            map,
            prefix: String::new(),
            write,
            strictness,
            violations: Violations::new(),
        }
    }

    /// What the fields are read for.
    #[must_use]
    pub fn write(&self) -> Write {
        self.write
    }

    /// How values out of their normal form are taken.
    #[must_use]
    pub fn strictness(&self) -> Strictness {
        self.strictness
    }

    /// Adds a violation of this object's field.
    pub fn refuse(&mut self, field: &str, message: impl Into<String>) {
        let field = format!("{}{field}", self.prefix);
        self.violations.add(field, message);
    }

    /// True if something is wrong with the field already.
    #[must_use]
    pub fn is_refused(&self, field: &str) -> bool {
        self.violations.concerns(&format!("{}{field}", self.prefix))
    }

    /// A field that has to be there in a new row and can't be emptied.
    pub fn required<T>(&mut self, field: &str, target: &mut T, rule: Rule<T>) {
        if !self.map.contains_key(field) && self.write != Write::Change {
            self.refuse(field, "is required");
        }
        self.value(field, target, rule);
    }

    /// A field that has a default and can't be emptied.
    pub fn value<T>(&mut self, field: &str, target: &mut T, rule: Rule<T>) {
        match self.map.remove(field) {
            None => {}
            Some(Value::Null) => self.refuse(field, "can't be null"),
            Some(value) => match rule(&value, self.strictness) {
                Ok(typed) => *target = typed,
                Err(message) => self.refuse(field, message),
            },
        }
    }

    /// A field that may be empty (`null`).
    pub fn optional<T>(&mut self, field: &str, target: &mut Option<T>, rule: Rule<T>) {
        match self.map.remove(field) {
            None => {}
            Some(Value::Null) => *target = None,
            Some(value) => match rule(&value, self.strictness) {
                Ok(typed) => *target = Some(typed),
                Err(message) => self.refuse(field, message),
            },
        }
    }

    /// A list of at most `most` entries; `null` is the empty list. In strict mode no entry
    /// may be there twice, else the second one is dropped.
    pub fn list<T: PartialEq>(
        &mut self,
        field: &str,
        target: &mut Vec<T>,
        most: usize,
        rule: Rule<T>,
    ) {
        let entries = match self.map.remove(field) {
            None => return,
            Some(Value::Null) => Vec::new(),
            Some(Value::Array(entries)) => entries,
            Some(_) => return self.refuse(field, "must be a list"),
        };
        if entries.len() > most {
            return self.refuse(field, format!("may have at most {most} entries"));
        }
        let mut list = Vec::with_capacity(entries.len());
        for (i, entry) in entries.iter().enumerate() {
            let name = format!("{field}[{i}]");
            match rule(entry, self.strictness) {
                Ok(typed) if !list.contains(&typed) => list.push(typed),
                Ok(_) if self.strictness == Strictness::Strict => {
                    self.refuse(&name, "is there twice");
                }
                Ok(_) => {}
                Err(message) => self.refuse(&name, message),
            }
        }
        *target = list;
    }

    /// A list that may be absent as a whole (`null`).
    pub fn optional_list<T: PartialEq>(
        &mut self,
        field: &str,
        target: &mut Option<Vec<T>>,
        most: usize,
        rule: Rule<T>,
    ) {
        match self.map.get(field) {
            None => {}
            Some(Value::Null) => {
                self.map.remove(field);
                *target = None;
            }
            Some(_) => {
                let mut list = Vec::new();
                self.list(field, &mut list, most, rule);
                *target = Some(list);
            }
        }
    }

    /// A nested object, read by `inside`; it is always replaced whole. `None`: absent.
    /// `Some(None)`: `null`.
    pub fn object<T: Default>(
        &mut self,
        field: &str,
        inside: impl FnOnce(&mut Self, &mut T),
    ) -> Option<Option<T>> {
        match self.map.remove(field)? {
            Value::Null => Some(None),
            Value::Object(map) => {
                let mut nested = Self {
                    map,
                    prefix: format!("{}{field}.", self.prefix),
                    write: Write::Create,
                    strictness: self.strictness,
                    violations: Violations::new(),
                };
                let mut value = T::default();
                inside(&mut nested, &mut value);
                self.violations.extend(nested.leftovers());
                Some(Some(value))
            }
            _ => {
                self.refuse(field, "must be an object");
                None
            }
        }
    }

    /// True if the field is there.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    /// Takes a field out unread.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field)
    }

    /// Fields that the server sets. In a new row they are refused, else ignored.
    pub fn read_only(&mut self, fields: &[&str]) {
        for field in fields {
            if self.map.remove(*field).is_some() && self.write == Write::Create {
                self.refuse(field, "is set by the server");
            }
        }
    }

    /// Ends the reading: whatever was not asked for is an unknown field.
    ///
    /// # Errors
    /// All violations, if there is any.
    pub fn finish(self) -> Result<(), Violations> {
        self.leftovers().into_result()
    }

    fn leftovers(mut self) -> Violations {
        let unknown: Vec<String> = self.map.keys().cloned().collect();
        for field in unknown {
            // The name comes from outside: shown, but not at any length.
            let shown: String = field.chars().take(64).collect();
            self.refuse(&shown, "is not a known field");
        }
        self.violations
    }
}
