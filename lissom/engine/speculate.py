"""Speculative decoding: tokens are guessed, and one pass of the model tells how many of them it would have chosen.

Leviathan, Kalman and Matias, ICML 2023, arXiv:2211.17192. There a guess x is kept with probability min(1, p(x) / q(x)).
Ours are certain of themselves, q(x) = 1, so it is kept with probability p(x): which is what happens if the next token
is drawn from p as ever, and compared with the guess. So every draw, and with it every text, is the one that would
have come without guesses; only the number of passes differs.

How many guesses are worth their time is measured as the engine runs: what a pass costs with how many rows, and how
often the guesses for each sequence came true. Where no guess pays there is none.
"""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field, replace

from lissom.engine.costs import Line
from lissom.engine.draft import Draft
from lissom.engine.lookup import Lookup
from lissom.engine.schedule import Schedule, Slice
from lissom.engine.sequence import Sequence

WHERE_IT_PAYS, NEVER, ALWAYS = "auto", "off", "always"
MODES = (WHERE_IT_PAYS, NEVER, ALWAYS)
MOST = 15  # guesses of a sequence in a pass; with the token before them as many as attend together
AGAIN = 32  # every so many passes each sequence gets a guess, so that what did not pay is tried again
MEMORY = 0.9  # what a chance keeps of what it knew, pass by pass


@dataclass(slots=True)
class Chance:
    """How often a guess comes true when those before it did: of late, beginning with one of two.

    That of one sequence begins as that `of` all is, and adds to it.
    """

    true: float = 1.0
    tried: float = 2.0
    of: "Chance | None" = None

    @property
    def rate(self) -> float:
        """From 0 to 1."""
        return self.true / self.tried

    def see(self, guesses: int, accepted: int) -> None:
        """So many guesses were made; the first that was wrong ended the trial."""
        self.true = MEMORY * self.true + accepted
        self.tried = MEMORY * self.tried + min(accepted + 1, guesses)
        if self.of is not None:
            self.of.see(guesses, accepted)

    def of_one(self) -> "Chance":
        """That of a new sequence."""
        return Chance(2 * self.rate, 2.0, self)


@dataclass(slots=True)
class Habit:
    """What is known of a sequence that decodes."""

    found: Chance
    drafted: Chance
    lookup: Lookup = field(default_factory=Lookup)


@dataclass(frozen=True, slots=True)
class Offer:
    """At most so many guesses for a sequence: those found in its text, or those of the draft where none are given."""

    sequence: Sequence
    chance: Chance
    most: int
    found: SequenceOf[int] = ()


class Speculation:
    """Guesses for the sequences of each pass that only decodes; counts those made and those that came true."""

    def __init__(self, schedule: Schedule, *, draft: Draft | None, mode: str) -> None:
        self.guessed = self.accepted = 0
        self._schedule = schedule
        self._draft = draft
        self._mode = mode
        self._line = Line()  # what a pass of the model costs
        self._found, self._drafted = Chance(), Chance()  # of all sequences
        self._habits = dict[Sequence, Habit]()
        self._taken = dict[Sequence, Chance]()  # of the guesses that are being run
        self._passes = 0

    def guess(self, slices: list[Slice]) -> list[Slice]:
        """The slices with guesses behind them, where these pay."""
        self._taken = {}
        if self._mode == NEVER or not all(piece.count == 1 and piece.completes for piece in slices):
            return slices
        self._habits = {piece.sequence: self._habits.get(piece.sequence) or self._habit() for piece in slices}
        offers = [self._offer(piece.sequence) for piece in slices]
        wanted = dict[Sequence, int]()
        for piece, offer, count in zip(slices, offers, self._counts(offers), strict=True):
            room = self._schedule.stretch(piece.sequence, count)
            piece.sequence.guesses.extend(offer.found[:room])
            if room and not offer.found:
                wanted[piece.sequence] = room
            self._taken[piece.sequence] = offer.chance
        if self._draft is not None and wanted:
            self._draft.guess(wanted)
        return [replace(piece, count=1 + len(piece.sequence.guesses)) for piece in slices]

    def learn(self, slices: list[Slice], seconds: float) -> None:
        """The slices have been run in so many seconds, and their sequences have taken what they accepted."""
        if self._taken:
            self._line.see(sum(piece.count for piece in slices), seconds)
        for piece in slices:
            guesses = len(piece.sequence.guesses)
            if guesses:
                accepted = min(piece.sequence.length - piece.start - 2, guesses)
                self._taken[piece.sequence].see(guesses, accepted)
                self.guessed += guesses
                self.accepted += accepted

    def _habit(self) -> Habit:
        return Habit(self._found.of_one(), self._drafted.of_one())

    def _offer(self, sequence: Sequence) -> Offer:
        """What could be guessed: from the text where that is as good as the draft, since it is for nothing."""
        habit, most = self._habits[sequence], min(MOST, max(sequence.limit - len(sequence.generated) - 1, 0))
        found = habit.lookup.guesses(sequence, most) if most > 0 else []
        if self._draft is None or (found and habit.found.rate >= habit.drafted.rate):
            return Offer(sequence, habit.found, len(found), found)
        return Offer(sequence, habit.drafted, most)

    def _counts(self, offers: SequenceOf[Offer]) -> list[int]:
        """How many guesses each sequence gets."""
        if self._mode == ALWAYS:
            return [offer.most for offer in offers]
        self._passes += 1
        least = int(self._passes % AGAIN == 0)
        counts = worthwhile(offers, self._line, None if self._draft is None else self._draft.line)
        return [max(count, min(least, offer.most)) for offer, count in zip(offers, counts, strict=True)]


def worthwhile(offers: SequenceOf[Offer], line: Line, draft: Line | None) -> list[int]:
    """How many guesses of each offer give the most tokens a second: one more is taken as long as that raises the rate.

    The guess at depth d counts if those before it came true as well, with chance p^d. It costs a row of the pass, and
    those of a draft cost a pass of it, in which they share. What comes deeper is worth less and costs the same: the
    first depth that does not pay is the end.
    """
    counts = [0] * len(offers)
    tokens, seconds = float(len(offers)), line.at(len(offers))
    for found, source in ((True, None), (False, draft)):
        mine = [at for at, offer in enumerate(offers) if bool(offer.found) == found]
        for depth in range(1, MOST + 1):
            gains = {at: offers[at].chance.rate ** depth for at in mine if depth <= offers[at].most}
            worth = {at: gain for at, gain in gains.items() if gain * seconds > line.slope * tokens}
            gain, cost = sum(worth.values()), line.slope * len(worth) + (source.at(len(worth)) if source else 0)
            if gain * seconds <= cost * tokens:
                break
            tokens, seconds = tokens + gain, seconds + cost
            for at in worth:
                counts[at] = depth
    return counts
