//! gRPC's status codes by the names that its specification gives them.

use tonic::Code;

/// The name of a code: `DEADLINE_EXCEEDED`.
pub(crate) fn name(code: Code) -> &'static str {
    NAMES[code as usize]
}

/// The code of this name.
pub(crate) fn of_name(name: &str) -> Option<Code> {
    NAMES.iter().position(|known| *known == name).and_then(of_number)
}

/// The code of this number, if it is one.
pub(crate) fn of_number(number: usize) -> Option<Code> {
    let number = i32::try_from(number).ok().filter(|_| number < NAMES.len())?;
    Some(Code::from(number))
}

/// How many there are.
pub(crate) const COUNT: usize = 17;

/// Each at its number.
const NAMES: [&str; COUNT] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_name() {
        for number in 0..NAMES.len() {
            let code = of_number(number).expect("it is one");
            assert_eq!((code as usize, of_name(name(code))), (number, Some(code)));
        }
        assert_eq!(name(Code::DeadlineExceeded), "DEADLINE_EXCEEDED");
        assert_eq!((of_number(NAMES.len()), of_name("Ok")), (None, None));
    }
}
