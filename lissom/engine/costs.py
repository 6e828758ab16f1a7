"""What passes cost, learned while they run."""

WARM = 2  # passes that do not count: they touch memory for the first time
MEMORY = 0.98  # what is kept of what was known, pass by pass


class Line:
    """Seconds of a pass as a line in its rows: the least squares fit to the passes of late.

    Where all of late had the same number of rows, the slope is the one that was known before; at first it is 0.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._rows = self._seconds = 0.0  # means
        self._variance = self._covariance = 0.0

    @property
    def slope(self) -> float:
        """Seconds of a row more."""
        return max(self._covariance / self._variance, 0.0) if self._variance else 0.0

    def at(self, rows: int) -> float:
        """Seconds of a pass with so many rows; 0 where nothing is known yet."""
        return max(self._seconds + self.slope * (rows - self._rows), 0.0)

    def see(self, rows: int, seconds: float) -> None:
        """A pass with so many rows took so long."""
        self._seen += 1
        if self._seen <= WARM:
            return
        share = max(1 - MEMORY, 1 / (self._seen - WARM))
        away, late = rows - self._rows, seconds - self._seconds
        self._rows += share * away
        self._seconds += share * late
        self._variance = (1 - share) * (self._variance + share * away * away)
        self._covariance = (1 - share) * (self._covariance + share * away * late)
