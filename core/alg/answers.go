package alg

// answers has one entry a track. They were made by this package; the tests
// compare what it makes with published vectors and with other libraries.
var answers = []answer{
	{
		track:  trackEd25519,
		digest: "5b2b1f2f813ce34ba4efcb98e3251f8fe5cd0d34482d2de5ee498c795c8e1ac8",
	},
	{
		track:  trackMLDSA44,
		digest: "e4cb24d8f449a7162dd13e4c18300926ee4d29dccdc87a81baef40f632f39e5a",
	},
	{
		track:  trackMLDSA65,
		digest: "145a0fd6099acd03ec222a7fb8505a2e4e230a648a2f3fd077cc4d2ef43fdf80",
	},
	{
		track:  trackMLDSA87,
		digest: "1267bbe0f063987129844a71066cded471391c814ebc97f3f75f3a95cabd8863",
	},
	{
		track:  trackX25519,
		digest: "eedd883da0a9451593dc0a38e583fb770fa27dbbed209c20404e075e68c4f0c9",
		sealed: "U2RsK6OHDq+uqfz2xD2SXmf8SF/34Isqz6ZFWl5MzwAdEKX/rhcG1yqT6syN6WRgaWCn2berXaBYTy2EC6ZMzDE=",
	},
	{
		track:  trackMLKEM768,
		digest: "0b7934c83125c788995e2ba6bd761e33046b3e40571be53e023309a29f398cc9",
		sealed: "nfZczPI8+HYxT8G1LDdJ3jOUptdeKuVAffkinTOPmeFhAmV/D5Q0DnnmDgALk+q9zs9zIwrhZQZaPqE+1g1nWZiM/aZaBYCvu+oO" +
			"BZsjQqv8lJgBklspTcFT1SHBP8KgrFPsL39R7mjqyzUq+io0erTXfCvbuG1LFeQ60A6oOUfEz7RHvJ0fHLA3tBP3cS99PHJNWLm0" +
			"nAkX89Tb4PrVsb7+kaoBTOQAeMFsA+wDCggehgHsXvKiiq5Io12LN5sWjyXOyN+UKbo69wngbB0udCubv3y71R8jU/1sNPpnE5DE" +
			"n6qjB7HzY6wWAbrAmhfWVBlXzEgfaQF8GFx74DqcsAXGsRJfE/tg9/GsebUMKcEuQQo3i+p007hXzkCd/7ZAgE6Xq25KqBdg72Wg" +
			"oNf8pjqN2Zy3n8iG9uEnPFezNmYK7ihMKiBMTZ9YxejJj/f0smIqPUAfiomMQA5gZPkJRrByL2E5Cm+GiBxv2YiGIJmrCN3S32DC" +
			"xTJczEYZO/izSnJulWzU7nr5f5rIXDRcHIlG4/MPxn37MEgmjc7QH9fKLZYNwZWWU92IXEZ08oQHUmvTDMAqllDTHqK4k7d1ieOH" +
			"F+/k2IyjPoS4CswBWFfM9jH2hdKDkTkwkpoDrcRq+wWQBYdfyDGblB3Iwd8nMx7Mws1wPalKuyAR2r4Wjr6I/EQcjx4Kfhocqi08" +
			"hcdVH4iV+NOhNuZTX7J1sZ+edHGIvy0AmL00ieeJiMd+UlfT9MhnLO2chouWmNYnAf7UHpYwSVYiDqLikYkyQT2OZrers+vjDPPU" +
			"7HVZUw1KtPEe6SrMQW0/qoILz8ZG17VyT29Aplb6fX0b9Mo8jUaCsHMhecUrCaYxuRqyXXURbSYbP+WXjQdzwd/20AD7aVPOApJo" +
			"dmuV0IDg0SBj09B1erevDCuQV7SVY/x7yvmfur7G835sCzEfZWLY6FPREgh8NxzVvt7iIlzTZ/1b3aUktsCZj/S/41lOf2r+vc/X" +
			"gQkeARGayvNwsCYKL19Q51fCHHMq8gzow6Noic55MZ8rxiVFfGDRqHGZIRICiJyBY/+IU5C+eCueS7UsS3oRQnSRzIN4GNG7ZzD7" +
			"Gozfwgvzhoj2x1O5bwy7tVq+0sIO86h2D82GEkdVDlySb3bdu/py/VLKJb1pEGrK+gFzUTvoomcgQK6W1You9VCjvGXwO5Z+Rvo4" +
			"G0W3YiCSwc6pjsiSEMZna98EHH351E/qHUVF07iJ7nYWhSLe0/i9yIOpUI89P+h6rXaJeKM+ZK2QfNFg9l+ZCu+RwPMORPK+ym1c" +
			"jvjnjCaCyq6G33zJjqS1xLZiRaCMTiQ/3eASss/A8x0RGTRhC8aqSiLluNqRxnEJyua+CZO4opIzWCNa5YjRzsOktgutceGqhFnb" +
			"y1dnYP2rWmHmUVGJCnrUVC3gXxexvuk7HYCznq1GpHpX3/PdP+aUtXeSLuLPoAv5AEFN2xDGDm9S6q7dqr2FxTcbGeAlrbY=",
	},
	{
		track:  trackMLKEM1024,
		digest: "c7b8fa0aa471d5ae18922d6ccad5b31e1d84f92ae723abfd13747018740a8530",
		sealed: "eMRS4fV0nruUWU1/oUUnxjpJ+SmvDQWH4Hx56q9A1gs/NGwp253bP8zIjIc3N2/wG5LgVEDUhM1dfr59rOU+jKQkcjwKDnXosl23" +
			"fcjGHvN0uvqus3pKW2JMrhfEZQ20JLyYJlgfgjTotZiJTyDxVkjIn29JNcHOYbk4aGuFRxcorT/SlQmvAoeHJP7WcI7RE4LJAUok" +
			"jtP42U7et+W22uQ20QZE78oqBD4/3/pzGqsbOtgCb0G0akPgQg89g5LXThz0IHSCpmHDWNS26Ar+yr2wwdmsLgactp4srP6RE8qN" +
			"X0OZaCfbMzt/d5y9mtvXiQiDCW6pPAm/QwehidDCUxdmJ0TlHMRVNnVkyWrVCewWckOqrSv6UOh7XZkZwB0wNtw8y5lRf3SF8hOR" +
			"odl2of3BlpVAOXZGdIe8r761pDcpxL2GohP4AdS+sQqwZtZ7tbDri+VlSSjLFza+dTI8wsKBy7/2ss1oXzu6mZ1LzF3wdRcse5pe" +
			"fBvLo+NOezrcqSt+FB4/QAsK1KY85ABcWrPC4Oe7IFnlsG3BqqSZWhaJ+2/RqIQkI41bk/4SKMOcQHBI8mJH+UfLBS+OEGeEwT1p" +
			"2hOHx+TDMR/4TFfw98agIwUG3eoigMmCsT8PVFGzNPQIZOzG03VQyIimdMyysBmi9frzi9ejl8ZlF45OXLOHdrw1re2pSNzfGZMS" +
			"rde2ikNWhaPBHXAxyk8zTmVCKimulTQB0xP+feH7YgAP25jY24UT4gPSWNgKQSjJBdWzB1Ug+/tJsZWV1PsOY0fYOcHHMqwsBgMi" +
			"u7/P4yIn2+gA8NQc2tLC+2KY1Ehr8AQViedPrQOoqJdMENEBuNZHFziLzML/XKxocFnxVNk7nFEIPRtw1x97zz68SmmK2pLjVPZu" +
			"AZAQ1yhEKGci96aiWWcRYvrnjN24l/+Jo4TY3DxE4YY6Q3Qq+ujj6K7y27JnSiYl/r43DrgBIFMmHOv5D5p+tS8iXVOMpAS+eXOC" +
			"7U9kAKMXcK1w2pt+ii5YPpXwvmE4kaSSjSouyARP3NvixgFm7UUWy/mhE+rTJMXYkfqbTsp3CkXG6KsP7bEzmzTssBQWKqo5dHXJ" +
			"V3sHGpt2UbDYhTqunr3pBGjeRQX/Vvrk8WmmGMvuFH2MJV0Qq/RWSisbuZ+eSOWhgk9wwoPHthacq7Ry/gxU2j6hyYbkFsFQ662J" +
			"uciz5kotbZwr/caydBegEpmkNCCdNQjKSN7cRM1JiT9Na7FBYf3PW05b6m6cMb2S3EIZoVnYCPBlG17aG2QG6CaZ+5fCj/pmd4o5" +
			"udbzv9A71OYIUlpqku/yWhHZVe59dX2ZpkR7wD86g6o0Om26LxO+31FlGOK3WY3B46L/eLlr2349GWAKXC0SyfdtsuwgTAza85Fx" +
			"Jvk6PaN6hj7tx1Tj1cERd8B2tXb0pnYsmxPYo6JtVko87jmBMrlgshm9SK/d5S9HddvKGi6tlQbcRQEbRjxvb5Xolf2HdvrlEJhu" +
			"lPiMR4CKaVfA25rn8kEjoFfqfb0UPynAOrw8NVwJ5s1RVpqYhQwohBj25aQhWHB28pIDVgCiMGE3B8UCCFBR579I3zJOsipYN3of" +
			"lNeuvi1nyXLiXiQ+ELpLCDsUaoD3F9tkyFN1cDp4vjAAlhBobj/herzErNDasZ0OnPuVNDEaYBwOnf2rQXgosU3FKJ0E/Am1yFKd" +
			"+umFzRnz3oGOnUb9J5hZRsxbPLi+TcBXJArKsFtT1VsxrNJ+Xg+TBzjXMxYbxk2m27/CO0nwVhcl6Uv9RvZTKlyX55LLGGKzOFJ+" +
			"9G5Ei4IZmyAH87FzvdYglFP0yOCH1JN3HHE4tR35sQ4akymmNDEb1npkaMqiJrk0uX5RfT76oe+vMuPE5BKZFT5h2JOo4sreIJ87" +
			"DluJSty7pzsWvx3pI1ay/AJW2zXxTn6QPXq5EXPaYP5XxoqfWpeVrxQuGli6ANDNnkHgGcmI9lhWkzhBwWzw0SKzzWvbS+LDTQO3" +
			"Xr5nHtGyXWxz/aWk0O8h40UqvsTK9oXTQwo+RCptpE9qJLN44FgMUfe6y58BpBSm4zMK5dcwk5T5ZeX/7B1ulN7awf2h8gG/vgug" +
			"p244kZwf3KQKol6vpegk0TOIbvak1jOyPYc=",
	},
	{
		track:  trackXWing,
		digest: "c9a3565ffde4f72b51661be391ee13e46378d7f06dd5c8bf5af9d2cfb5b8336b",
		sealed: "rrj8Hl51FCR/y30nl4hi79SwukikbjfKRVRU7P4mcTXnryqUeW+48TCfNuieOP4Tih9UcpgAWP9f6Zh3ciB2dnKB0Jg2HkdHMQp/" +
			"Qo6lhBrmUwCBrDD9rojrZuaGQZu15cBzaBGBZj6NfHAvHUtxOk7hLchN8Srv5JIuxathhdJmBJnUTgycpEO68hDgshDbdTmkPUMh" +
			"WPRFUWK9brpWedLnmufFhL0g3I/qm3Qs7CkIgjLiwWZDKn8OyIUT0NuCGdHXM4/F5tje08iB9UJn0YUwCaS7dCNh5EiCt9WYEb4l" +
			"vbTR/awf+6UE1dA7RdpQpWUNTkCSJjvM7t7i3BE7EX2UoQwbQQcHVT3k79Cb9zshQxlPJ/p5fa2XFQiJ+kaBStMSRqsK54RpHLsM" +
			"mMUM8rWiAdKhYi5oRKSkA76F8TZURGNpLC0nvt5Asd8p4lK4QTaWGn6ei2Ns4ZTdPkXkPSNjm6OqhUbYTA2JY5W9V1TmbwAg6NiF" +
			"cX/jO6X0r/qn9/w/81wa0v8IC+LHRu90R+jYyqrbXDaA8DMLMZg5fIhwPP5DS3ZRS6uaMjy04WZ64k7u0XJnUCyCspYk3XkaO1bn" +
			"nYRS5UilaJu6TrjEqED8dyxqlbcsykrfbk4jfEv1vxugdlWEFlMMYN/WSa86IEXqwn9uSZ4LmevSeyNa2qGuAMTcRwpRLFieIXBI" +
			"adKErilx2Gs88aNzaulEmiZUr9J1GY/I+SHtVvnHoBnmgbAgQ4ocHmyLiufR/S5mlG6sUuiAaG7r5qsfcue21kWIPZkGhCPXpja6" +
			"LIomNqAQGEiDmXtRDHRUI9DBnT3MKwVNIxA+vPbqXUUnnTIFldBDK2ZI37DoBngv5YLADPeZNJmhGAwONRfStJmdSZaEDJkQYkF8" +
			"xNG8aWqsZrwIZ4JZKzuc9F+QZ9zyAIwSPQ9x454qHEuHwNYTUoryP0antuTO6qIoAeFtHptOOCM5WITC+vLvIMp2xT4RGIT9vi7y" +
			"CY97yaoEcGU3hyE2GlMhfwfaM1NBELTTHtM7/QOcWXTja5QjNuyDbG01hKLlwyOzZh7PzPBUG3NluP9ewVvy9JjgptyiFm9PbK8z" +
			"w4F4vl/lSJ9ORRIm/RgJ0ccZOZYmV1QefBJSF7HV4HBEGAqy2ywtusXs7b+qU0B17R8ENIMZK/5YZTOAYV14CClKt9mL/gMfjG14" +
			"qkifk5CgGdHB6oe7kAhdUcfg3y1NHIx9S+6c7UBoggy3cxVk8VJ7ch4kdBz0ym31qXGpIdw5RJ44ONJjri0eccCiiBM6/W3Myf+e" +
			"Vh08nj4BIL35klHobcMtaD7uDwc9yzCK916Lqwg9cy2BmFD21TY3FOw6pXqDe+kUeM9CNFsSOn6UWIrVf2t6r5CiTXCw2mIxirno" +
			"sKoY2NjappoN5y0G7sLLj87Ukj8whTKnHRYZIsv/gxhK3TLZFBmniiTMspDOG8KjDWbhp7KmStIKsHNmm6D51ZaedG/4ddklwEkL" +
			"P1vO/sApGOmv0Xw1v+tbJQKC86BxVU3HkT3jeA==",
	},
	{
		track:  trackAESGCM,
		sealed: "jn4pDQn1cHHC613VAnGFgJyI5RLobuKZ0mvrV2w44fNhjX5NAz7ZCq9HloY+RlEQ4Pjvq7Hxh1GtzGvirQ==",
	},
	{
		track:  trackChaCha20Poly1305,
		sealed: "xSsXBtDH46bLZqwwzCmRY6nZS3fmtZCZFRgEpK2iy/b+wanK5NaXBIsowGopRfzYCClubW3ixkW4p62G1g==",
	},
	{
		track:  trackHKDF,
		digest: "95a337d9a420694c56eb33f5e841b7cc731004f22f4eac455d296e36eb8ce231",
	},
}
