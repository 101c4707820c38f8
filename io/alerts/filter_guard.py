"""What SQL a user's filter may hold: one plain SELECT of known tables and harmless functions. Nothing is run here.

The text is parsed, every node of the tree is held against a list of what is allowed, and the SQL that runs is written
anew from that tree, so that what was checked is what is run. What is not on the list is refused: files, settings,
functions that make rows or long texts out of nothing, recursion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from nightstream.errors import InputError

if TYPE_CHECKING:
    from sqlglot.expressions import Expression

TABLES = ("alert", "diaSource", "diaObject", "ssSource")
MAX_CHARACTERS = 10_000
MAX_TABLES = 6  # in one filter, however often the same one
MAX_STARS = 6  # each stands for all columns, and in nested SELECTs for all of all: seconds that nothing can interrupt
MAX_DEPTH = 200  # of the tree; far below what exhausts the parser of the database

# Nodes of sqlglot's tree. What takes memory or time out of proportion to the rows stays out: repeat, lpad, range, lists,
# string concatenation and aggregation, WITH, set operations, PIVOT.
_CLAUSES = """
    Select From Join Where Group Having Qualify Order Ordered Limit Offset Distinct Subquery Table TableAlias Alias
    Column Identifier Star Literal Null Boolean Paren Tuple Window WindowSpec Filter
"""
_OPERATORS = """
    And Or Not EQ NEQ GT GTE LT LTE NullSafeEQ NullSafeNEQ Between In Is Like ILike Exists Any All Case If
    Add Sub Mul Div IntDiv Mod Neg Pow Cast TryCast DataType
"""
_FUNCTIONS = """
    Abs Acos Asin Atan Atan2 Cbrt Ceil Coalesce Cos Degrees Exp Floor Greatest IsInf IsNan Least Ln Log Lower Nullif Pi
    Radians Round Sign Sin Sqrt StartsWith Tan Trunc Upper
    AnyValue IgnoreNulls ArgMax ArgMin Avg Count CountIf LogicalAnd LogicalOr Max Median Min Stddev StddevPop StddevSamp
    Sum Variance VariancePop DenseRank Rank RowNumber
"""
ALLOWED_NODES = frozenset(f"{_CLAUSES} {_OPERATORS} {_FUNCTIONS}".split())
ALLOWED_NAMES = frozenset({"isfinite", "hypot"})  # functions that sqlglot has no node for
ALLOWED_TYPES = frozenset("TINYINT SMALLINT INT BIGINT UTINYINT USMALLINT UINT UBIGINT FLOAT DOUBLE BOOLEAN TEXT VARCHAR".split())

_WORDS = {"With": "WITH", "CTE": "WITH", "Union": "UNION", "Except": "EXCEPT", "Intersect": "INTERSECT", "DPipe": "||"}


@dataclass(frozen=True, slots=True)
class GuardedSql:
    """A SELECT that passed: ``sql`` to run, whether the user gave it an order, all ``names`` in it in lower case."""

    sql: str
    is_ordered: bool
    names: frozenset[str]


@lru_cache(maxsize=1024)
def guard(text: str) -> GuardedSql:
    """Return the one SELECT that ``text`` holds, checked and written anew, without its comments.

    Raises InputError, with the reason, for anything but one SELECT of the tables `TABLES` with allowed clauses and
    functions, of at most `MAX_CHARACTERS` characters, `MAX_TABLES` tables, `MAX_STARS` stars and `MAX_DEPTH`
    levels.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"a filter may have {MAX_CHARACTERS} characters, got {len(text)}")
    tree = _parsed(text)
    _check_nodes(tree)
    if tree.find(_expressions().From) is None:
        raise InputError(f"the filter reads no table: FROM one of {', '.join(TABLES)}")
    names = frozenset(node.name.lower() for node in tree.find_all(_expressions().Identifier))
    return GuardedSql(tree.sql(dialect="duckdb", comments=False), tree.args.get("order") is not None, names)


def _expressions():
    from sqlglot import expressions

    return expressions


def _parsed(text: str) -> Expression:
    """The tree of the only statement."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    try:
        words = sqlglot.tokenize(text, read="duckdb")
        _check_statement([word.text for word in words], [word.token_type.name for word in words])
        statements = sqlglot.parse(text, read="duckdb")
    except SqlglotError as error:
        raise InputError(f"not understood as SQL: {_first_line(error)}") from None
    except RecursionError:
        raise InputError("too deeply nested") from None
    return next(tree for tree in statements if tree is not None)  # after a last semicolon there may be None


def _check_statement(words: list[str], kinds: list[str]) -> None:
    """One statement, and a SELECT; looked at before the parser, which would take some commands as they are."""
    while kinds and kinds[-1] == "SEMICOLON":
        kinds = kinds[:-1]
    if not kinds:
        raise InputError("the filter is empty")
    if kinds[0] != "SELECT":
        raise InputError(f"only a SELECT is allowed, got {words[0].upper()[:20]}")
    if "SEMICOLON" in kinds:
        raise InputError("only one statement is allowed, got more after a semicolon")


def _check_nodes(tree: Expression) -> None:
    """Every node allowed, tables known and few, few stars, the tree not too deep."""
    n_tables, n_stars, level = 0, 0, [tree]
    for _ in range(MAX_DEPTH):
        for node in level:
            _check_node(node)
            n_tables += type(node).__name__ == "Table"
            n_stars += type(node).__name__ == "Star"
        level = [child for node in level for child in node.iter_expressions()]
        if not level:
            break
    if level:
        raise InputError("too deeply nested")
    if n_tables > MAX_TABLES:
        raise InputError(f"a filter may name {MAX_TABLES} tables, got {n_tables}")
    if n_stars > MAX_STARS:
        raise InputError(f"a filter may have {MAX_STARS} stars (*), got {n_stars}")


def _check_node(node: Expression) -> None:
    kind = type(node).__name__
    if kind == "Anonymous":
        if node.name.lower() not in ALLOWED_NAMES:
            raise InputError(f"the function {node.name[:40]}() is not allowed")
    elif kind not in ALLOWED_NODES:
        raise InputError(f"{_WORDS.get(kind) or _spoken(node)} is not allowed")
    elif kind == "Table":
        _check_table(node)
    elif kind == "DataType" and node.this.name not in ALLOWED_TYPES:
        raise InputError(f"the type {node.this.name} is not allowed")
    elif kind == "Column" and (node.args.get("db") or node.args.get("catalog")):
        raise InputError(f"{node.sql()[:80]}: write a column as table.column")
    elif kind == "Join" and node.args.get("method"):
        raise InputError(f"{node.args['method'].upper()} JOIN is not allowed")  # NATURAL joins on columns nobody named


def _check_table(node: Expression) -> None:
    """A bare name of `TABLES`: no other database, no file, no function."""
    known = {name.lower() for name in TABLES}
    is_bare = type(node.this).__name__ == "Identifier" and not node.args.get("db") and not node.args.get("catalog")
    if not is_bare or node.name.lower() not in known:
        raise InputError(f"there is no table {node.sql(dialect='duckdb')[:80]}; there are {', '.join(TABLES)}")


def _spoken(node: Expression) -> str:
    """What the user may know the node as: the function's name, or the words of the SQL."""
    if isinstance(node, _expressions().Func):
        return f"the function {node.sql_name().lower()}()"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).upper()


def _first_line(error: Exception) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # sqlglot underlines for terminals
    return " ".join(plain.split())[:200]
