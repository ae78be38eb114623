package cli

import "strings"

// Closest returns the word that a person most likely meant by typed, "" if none
// is near: first one that it is a prefix of, then the least edits.
func Closest(typed string, words []string) string {
	best, least := "", 6
	for _, word := range words {
		if rest, ok := strings.CutPrefix(word, typed); ok && typed != "" && len(rest) < 64 {
			if best == "" || len(word) < len(best) {
				best = word
			}
		}
	}
	if best != "" {
		return best
	}
	for _, word := range words {
		if d := distance(typed, word); d < least {
			best, least = word, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
